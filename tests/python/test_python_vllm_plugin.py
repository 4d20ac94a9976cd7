"""`omnitrace.vllm` as a plugin: when it is asked for, and what it finds out about its process."""

from __future__ import annotations

import pytest

from program import Program
from sink import Sink

BEFORE = """\
import multiprocessing, subprocess
from types import SimpleNamespace as Thing
from omnitrace import vllm
"""


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OMNITRACE": "1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, True),
        ({"TRACE_OUTPUT_DIRECTORY": "/tmp"}, True),
        ({"TRACE_OUTPUT_DIRECTORY": " "}, False),
        ({"TRACE_OUTPUT_DIRECTORY": "/tmp", "OMNITRACE": "0"}, False),
    ],
)
def test_it_is_inert_unless_asked_for(
    program: Program, variables: dict[str, str], wanted: bool
) -> None:
    none: dict[str, str | None] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": None,
        "TRACE_OUTPUT_DIRECTORY": None,
    }
    result = program.run(
        """
        import importlib.metadata
        entries = importlib.metadata.entry_points()
        group = "vllm.general_plugins"
        # CPython 3.9 has a dictionary here.
        of_group = entries.select(group=group) if hasattr(entries, "select") else entries[group]
        (entry,) = set(of_group)
        say([entry.name, entry.value])
        entry.load()()
        say(["omnitrace.vllm._plugin" in sys.modules, len(sys.meta_path)])
        say([thread.name for thread in threading.enumerate()])
        """,
        before="paths = len(sys.meta_path)\n",
        **{**none, **variables},
    )
    name, (loaded, _), threads = result.said
    assert name == ["omnitrace", "omnitrace.vllm:register"]
    assert (loaded, threads) == (wanted, ["MainThread"])


def test_what_vllm_leaves_in_the_environment_for_its_own_tracing_asks_nothing_of_us(
    program: Program,
) -> None:
    result = program.run(
        """
        vllm.register()
        # What vLLM does for --otlp-traces-endpoint, before it starts its engine.
        os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = "http://localhost:1/v1/traces"
        engine = "import sys; from omnitrace import vllm; vllm.register(); " \\
                 "print('omnitrace.vllm._plugin' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", engine], capture_output=True, text=True)
        say([done.stdout.strip(), done.stderr])
        """,
        before=BEFORE,
        OTEL_EXPORTER_OTLP_ENDPOINT=None,
        TRACE_OUTPUT_DIRECTORY=None,
    )
    assert result.said == [["False", ""]]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_what_vllm_leaves_there_is_not_taken_for_our_endpoint(
    program: Program, sink: Sink, start: str
) -> None:
    result = program.run(
        f"""
        from omnitrace.vllm import _roles

        def engine():
            vllm.register()
            omnitrace.action("Start process request in prefill engine", "engine")
            omnitrace.action("success add to seq groups", "engine")
            omnitrace.action("Prefill done execute_model", "engine")
            omnitrace.flush()

        if __name__ == "__main__":
            vllm.register()
            _roles.learn(Thing(kv_transfer_config=Thing(kv_role="kv_producer")))
            # What vLLM does for --otlp-traces-endpoint, before it starts its engine.
            os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = "grpc://localhost:1"
            child = multiprocessing.get_context("{start}").Process(target=engine)
            child.start()
            child.join()
            omnitrace.action("PD api server get request", "api")
            omnitrace.action("Finish prefill pickle and start response", "api")
            omnitrace.flush()
            say(os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
        """,
        before=BEFORE,
    )
    assert (result.said, result.messages) == (["grpc://localhost:1"], [])
    assert {(span.resource["service.name"], span.name) for span in sink.spans} == {
        ("vllm-prefill", "Prefill"),
        ("vllm-prefill", "Prefill execute_model"),
    }


def test_the_role_is_the_environments_else_the_kv_transfers_else_the_requests(
    program: Program,
) -> None:
    result = program.run(
        """
        from omnitrace.vllm import _roles

        def config(kv_role):
            return Thing(kv_transfer_config=Thing(kv_role=kv_role) if kv_role else None)

        def request(**params):
            return Thing(sampling_params=Thing(extra_args={"kv_transfer_params": params}))

        found = []
        for role, kv_role in [("decode", "kv_producer"), ("", "kv_producer"), ("", "kv_consumer"),
                              ("", "kv_both"), ("", None)]:
            os.environ["ROLE"] = role
            _roles.learn(config(kv_role))
            found.append([os.environ["ROLE"], _roles.of_process()])
        say(found)
        say([_roles.of_request(r) for r in (
            None, Thing(), Thing(kv_transfer_params={"do_remote_decode": True}),
            request(do_remote_prefill=True, do_remote_decode=False), request())])
        """,
        before=BEFORE,
        ROLE=None,
    )
    assert result.said == [
        [
            ["decode", "decode"],
            ["prefill", "prefill"],
            ["decode", "decode"],
            ["serve", "serve"],
            ["serve", "serve"],
        ],
        ["serve", "serve", "prefill", "decode", "serve"],
    ]
