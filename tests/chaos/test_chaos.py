"""Through outages of every kind, each span arrives: live or from the legacy log, and once.

`make chaos` runs this with a million spans; CHAOS_SPANS, CHAOS_OUTAGES and CHAOS_SEED say how many
spans, how many outages, and which order and lengths of them.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from pathlib import Path

import pytest

from program import command
from storm import Storm
from third_party import OTELCOL
from traces import NAMES, keys_of, label_of

SPANS = int(os.environ.get("CHAOS_SPANS") or 20_000)
OUTAGES = int(os.environ.get("CHAOS_OUTAGES") or 5)
SEED = int(os.environ.get("CHAOS_SEED") or secrets.randbits(32))


def test_every_span_comes_live_or_by_replay_and_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if not OTELCOL.exists():
        pytest.skip("needs a collector that has passed on what it takes: `make collector`")

    def say(line: str) -> None:
        with capfd.disabled():
            print(line, flush=True)

    say(f"\n{SPANS} spans, {OUTAGES} outages, CHAOS_SEED={SEED}")
    storm = Storm(tmp_path, SEED, say)
    try:
        storm.start()
        storm.blow(SPANS, OUTAGES)
        live = Counter(storm.archive.seen)
        command("replay", storm.logs, "--endpoint", storm.collector.endpoint(), "--quiet")
        replayed = storm.archive.seen - live
    finally:
        storm.close()

    # The books of each process balance, and they say what has happened.
    reports = storm.reports()
    created = {key for report in reports for key in keys_of(report.label, report.traces)}
    assert len(created) >= SPANS
    assert [(r.balance, r.books["in_flight"], r.books["dropped"]) for r in reports] == [
        (0, 0, {})
    ] * len(reports)
    exported = storm.weather.exported
    logged = Counter(label_of(key) for key in replayed.elements())
    said = {r.label: (r.books["created"], r.books["exported"], r.books["logged"]) for r in reports}
    assert said == {
        r.label: (r.traces * len(NAMES), exported[r.label], logged[r.label]) for r in reports
    }

    # None is missing, and none has come that nobody made; no two share an id.
    assert live.keys() | replayed.keys() == created
    assert storm.archive.contradictions == []
    assert len(set(storm.archive.span_ids.values())) == len(created)

    # None came twice whose answer went back. A sender whose answer is lost cannot know that the
    # Collector has taken its spans: those may come again, as often as an answer was lost.
    lost = storm.weather.unanswered
    twice = {key: n for key, n in storm.archive.seen.items() if n > 1}
    assert {key: n for key, n in twice.items() if n > 1 + lost[key]} == {}
    assert {k for k, n in storm.weather.answered.items() if n > 1 or replayed[k]} == set()

    answers = sum(n > 0 for n in lost.values())
    say(f"{len(created)} spans of {len(reports)} processes are accounted for")
    say(f"{len(live):>10} came live")
    say(f"{len(replayed.keys() - live.keys()):>10} came by replay only")
    say(f"{0:>10} are missing, {0} came again though the answer had gone back")
    say(f"{len(twice):>10} came again of {answers} whose answer was lost on the way")
