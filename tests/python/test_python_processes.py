"""Forked and spawned processes: each delivers its own spans, once, and none hangs."""

from __future__ import annotations

from collections import Counter

import pytest

from program import Program, Result
from sink import Sink, forest

PREFILL = "PD api server get request", "Finish prefill pickle and start response"


def by_process(sink: Sink, result: Result) -> dict[str, list[str]]:
    """The names of the spans of each process, as it called itself; no id twice."""
    assert len({span.span_id for span in sink.spans}) == len(sink.spans)
    names = {said[1]: said[0] for said in result.said}
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for span in sink.spans:
        found[names[span.pid]].append(span.name)
        assert span.resource["service.instance.id"] == f"10.0.0.2:{span.pid}"
    return {name: sorted(spans) for name, spans in found.items()}


def test_a_forked_child_starts_clean_and_its_parent_goes_on(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        def child():
            say(["at once", -1, *stats().values()][:6])
            record("child")
            action("PD api server get request", "of the child")
            action("Finish prefill pickle and start response", "of the child")
            delivered("child")

        record("parent, before")
        action("PD api server get request", "r")
        pid = fork(child)
        action("Finish prefill pickle and start response", "r")
        record("parent, after")
        join(pid)
        delivered("parent")
        """,
        ROLE="prefill",
    )
    assert result.said.pop(0) == ["at once", -1, 0, 0, 0, 0]
    assert by_process(sink, result) == {
        "child": ["Prefill", "child"],
        "parent": ["Prefill", "parent, after", "parent, before"],
    }
    assert [said[2:] for said in result.said] == [[2, 2, 3], [3, 3, 4]]
    assert result.lines == [] and result.messages == []


def test_a_span_that_is_open_at_the_fork_is_the_parents(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        with span("open"):
            pid = os.fork()
            with span("child" if pid == 0 else "parent"):
                pass
        delivered("parent" if pid else "child")
        if pid == 0:
            os._exit(0)
        join(pid)
        """
    )
    assert by_process(sink, result) == {"child": ["child"], "parent": ["open", "parent"]}
    # The child's work is part of what the parent was doing.
    assert forest([s for s in sink.spans if s.name != "child"]) == [("open", [("parent", [])])]
    spans = {span.name: span for span in sink.spans}
    assert spans["child"].parent_id == spans["open"].span_id


def test_threads_fork_while_others_record(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        over = threading.Event()
        recorded = 0

        def busy():
            global recorded
            while not over.is_set():
                record("busy")
                recorded += 1
                time.sleep(0.0005)

        def forker(number):
            for turn in range(5):
                def child():
                    record(f"child {number}.{turn}")
                    delivered(f"child {number}.{turn}")
                join(fork(child))

        threads = [threading.Thread(target=forker, args=(n,)) for n in range(3)]
        background = threading.Thread(target=busy)
        background.start()
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        over.set()
        background.join()
        delivered("parent")
        say(recorded)
        """,
        OTEL_BSP_SCHEDULE_DELAY="1",
    )
    recorded = result.said.pop()
    children = {f"child {n}.{turn}" for n in range(3) for turn in range(5)}
    assert by_process(sink, result) == {
        **{name: [name] for name in children},
        "parent": ["busy"] * recorded,
    }
    assert result.lines == []


def test_a_fork_at_any_moment_of_the_first_recording_is_survived(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        import random

        def child():
            record("child")
            assert flush(30)
            say(stats()["exported"])

        for turn in range(60):
            init()
            record("parent")
            time.sleep(random.random() * 0.004)
            join(fork(child))
        """,
        OTEL_BSP_SCHEDULE_DELAY="0",
    )
    assert result.said == [1] * 60
    assert Counter(s.name for s in sink.spans) == {"parent": 60, "child": 60}
    assert len({s.span_id for s in sink.spans}) == 120
    assert result.lines == []


def test_a_grandchild_and_a_child_that_ends_by_itself_deliver_too(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        def named(name):
            record(name)
            say([name, os.getpid()])

        named("parent")
        pid = os.fork()
        if pid == 0:
            named("child")
            pid = os.fork()
            if pid == 0:
                named("grandchild")
                sys.exit()
            join(pid)
            sys.exit()
        join(pid)
        """
    )
    assert by_process(sink, result) == {n: [n] for n in ("parent", "child", "grandchild")}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessings_children_deliver_when_they_end(
    program: Program, sink: Sink, method: str
) -> None:
    result = program.start("workers.py", method, ROLE="prefill").end()
    [[parent, exits]] = result.said
    assert exits == [0, 0, 0]
    found: dict[object, list[str]] = {}
    for span in sink.spans:
        found.setdefault(span.pid, []).append(span.name)
    assert sorted(found.pop(parent)) == ["after", "before"]
    assert sorted(map(sorted, found.values())) == [["Prefill", f"child {n}"] for n in range(4)]
    assert len({span.span_id for span in sink.spans}) == 10
    assert (result.lines, result.messages) == ([], [])


def test_a_fork_during_an_export_to_a_silent_collector_neither_hangs_nor_loses(
    program: Program, sink: Sink
) -> None:
    sink.script = ["silent"]
    running = program.start(
        """
        def child():
            record("child")
            assert flush(0.2)
            delivered("child")

        record("parent")
        sys.stdin.readline()
        join(fork(child))
        assert flush(0.2)
        delivered("parent")
        """,
        OTEL_BSP_SCHEDULE_DELAY="0",
    )
    sink.wait(lambda sink: sink.requests)
    running.tell()
    result = running.end()
    assert [said[0::2] for said in result.said] == [["child", 1, 1], ["parent", 1, 1]]
    files = {file.name.split("_")[2]: file.read_text() for file in result.directory.iterdir()}
    who = {str(said[1]): said[0] for said in result.said}
    assert {who[pid]: text.count("<<<Action: ") for pid, text in files.items()} == {
        "child": 1,
        "parent": 1,
    }
    assert all(f"<<<Action: {who[pid]}; " in text for pid, text in files.items())


def test_a_fork_finds_no_thread_of_ours(program: Program, sink: Sink) -> None:
    running = program.start("forks.py", OTEL_BSP_SCHEDULE_DELAY="0")
    sink.wait(lambda sink: len(sink.spans) == 3)
    sink.script = ["silent"]
    running.tell()
    # The main thread; with the one that forks; with the one that flushes.
    assert running.hear() == [1, 2, 2]
    sink.ending.set()
    [books] = running.end().said
    assert (books["created"], books["exported"], books["logged"]) == (2, 1, 1)
    assert Counter(span.name for span in sink.spans) == {"parent": 1, "child": 2}
