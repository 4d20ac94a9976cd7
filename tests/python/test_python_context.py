"""What a span hangs under: open spans, parents, requests, across tasks and threads."""

from __future__ import annotations

from program import Program
from sink import Sink, forest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


def test_a_span_hangs_under_the_open_one_a_given_parent_or_its_request(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        f"""
        caller = {{"traceparent": "00-{TRACE}-{CALLER}-01"}}
        remote = extract(caller)
        say([remote.trace_id, remote.span_id, remote.sampled, remote.traceparent, repr(remote)])
        say([remote == extract(caller), hash(remote) == hash(extract(caller))])
        with span("anywhere"):
            with span("under a parent", parent=remote):
                carrier = {{}}
                inject(carrier)
                say(carrier)
        extract(caller, "r")
        action("PD api server get request", "r")
        with span("of the request", "chatcmpl-r") as of_request:
            with span("of another", "other"):
                pass
        with span("of a request from elsewhere", "other"):
            pass
        action("Finish prefill pickle and start response", "r")
        unsampled = extract({{"traceparent": "00-{TRACE}-{CALLER}-00"}})
        with span("not recorded", parent=unsampled) as silent:
            inject(carrier)
            say([unsampled.sampled, carrier["traceparent"][-2:], silent.context.sampled])
        flush()
        say([stats()["created"], stats()["unsampled"]])
        inject(carrier := {{}})
        say(carrier)
        """,
        ROLE="prefill",
    )
    spans = {span.name: span for span in sink.spans}
    under = spans["under a parent"]
    parent = f"00-{TRACE}-{CALLER}-01"
    assert result.said == [
        [TRACE, CALLER, True, parent, f"SpanContext('{parent}')"],
        [True, True],
        {"traceparent": f"00-{TRACE}-{under.span_id}-01"},
        [False, "00", False],
        [6, 1],
        {},
    ]
    elsewhere, prefill = spans["of a request from elsewhere"], spans["Prefill"]
    assert {name: (s.trace_id, s.parent_id) for name, s in spans.items()} == {
        "anywhere": (spans["anywhere"].trace_id, ""),
        "under a parent": (TRACE, CALLER),
        "Prefill": (TRACE, CALLER),
        "of the request": (TRACE, prefill.span_id),
        "of another": (TRACE, spans["of the request"].span_id),
        "of a request from elsewhere": (elsewhere.trace_id, ""),
    }
    assert len({s.trace_id for s in sink.spans}) == 3


def test_asyncio_tasks_and_copied_contexts_keep_their_parent_and_threads_begin_anew(
    program: Program, sink: Sink
) -> None:
    program.run(
        """
        import asyncio, contextvars
        from concurrent.futures import ThreadPoolExecutor

        async def task(name, turn, turns):
            with span(name):
                for _ in range(3):
                    await asyncio.sleep(0)
                    with span(f"step of {name}"):
                        await asyncio.sleep(0)

        def in_thread(name):
            with span(name):
                pass

        async def main():
            with span("main"):
                await asyncio.gather(*(task(f"task {n}", n, 3) for n in range(3)))
                loop = asyncio.get_running_loop()
                context = contextvars.copy_context()
                await loop.run_in_executor(None, context.run, in_thread, "copied context")
                await loop.run_in_executor(None, in_thread, "thread")
                later = asyncio.create_task(task("background", 0, 1))
            await later

        asyncio.run(main())
        """
    )
    # The task outlives the span that began it; it still belongs there.
    late = {"background", "step of background"}
    steps: list[list[object]] = [[(f"step of task {n}", [])] * 3 for n in range(3)]
    assert forest([s for s in sink.spans if s.name not in late]) == [
        ("main", [*((f"task {n}", steps[n]) for n in range(3)), ("copied context", [])]),
        ("thread", []),
    ]
    [main] = [s for s in sink.spans if s.name == "main"]
    [background] = [s for s in sink.spans if s.name == "background"]
    assert (background.trace_id, background.parent_id) == (main.trace_id, main.span_id)
    assert forest([s for s in sink.spans if s.name in late]) == [
        ("background", [("step of background", [])] * 3)
    ]


def test_one_span_object_may_be_open_many_times_at_once(program: Program, sink: Sink) -> None:
    program.run(
        """
        shared = span("shared", attributes={"every": 1})
        threads = 8
        together = threading.Barrier(threads)

        def work(number):
            with span(f"thread {number}"):
                together.wait()
                for _ in range(20):
                    with shared:
                        with span("inside"):
                            pass

        running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for thread in running: thread.start()
        for thread in running: thread.join()

        def down(depth):
            with shared:
                shared.set_attribute("depth", depth)
                if depth: down(depth - 1)

        down(2)
        with span("nothing is left open"):
            pass
        """
    )
    block: object = ("shared", [("inside", [])])
    found = sorted(forest(sink.spans))
    assert found == sorted(
        [
            *((f"thread {n}", [block] * 20) for n in range(8)),
            ("shared", [("shared", [("shared", [])])]),
            ("nothing is left open", []),
        ]
    )
    deep = [s for s in sink.spans if s.name == "shared" and "depth" in s.attributes]
    deep.sort(key=lambda s: s.start)
    assert [s.attributes for s in deep] == [{"every": 1, "depth": n} for n in (2, 1, 0)]


def test_what_one_thread_binds_holds_for_the_actions_and_spans_of_all_others(
    program: Program, sink: Sink
) -> None:
    program.run(
        f"""
        action("PD api server get request", "of the main thread")
        headers = {{"traceparent": "00-{TRACE}-{CALLER}-01"}}
        thread = threading.Thread(target=extract, args=(headers, "r"))
        thread.start()
        thread.join()
        action("PD api server get request", "r")
        action("Start process request in prefill engine", "r")
        with span("work", "r"):
            pass
        action("Finish prefill pickle and start response", "r")
        """,
        ROLE="prefill",
    )
    spans = [s for s in sink.spans if s.attributes.get("gen_ai.request.id") != "of the main thread"]
    assert {s.trace_id for s in spans} == {TRACE}
    start = "Start process request in prefill engine"
    add = "Add to running for prefill"
    assert forest(spans) == [("Prefill", [(add, [(start, [])]), ("work", [])])]


def test_a_logging_handler_may_record_and_other_threads_may_begin_meanwhile(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        class Handler(logging.Handler):
            def emit(self, record):
                time.sleep(0.05)
                with span("from the handler"):
                    action("from the handler", "r")

        logging.getLogger("omnitrace").addHandler(Handler())
        begin = threading.Barrier(4)

        def work():
            begin.wait()
            with span("from a thread"):
                pass

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """,
        OTEL_BSP_SCHEDULE_DELAY="soon",
        OTEL_SDK_DISABLED="maybe",
    )
    assert len(result.messages) == 2
    names = sorted(s.name for s in sink.spans)
    assert names == ["from a thread"] * 4 + ["from the handler"] * 2
