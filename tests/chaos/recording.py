"""One trace as a program records it: the spans of `traces.NAMES`."""

from __future__ import annotations

import omnitrace
from traces import NAMES

CALLER = "00f067aa0ba902b7"


def record(trace_id: str) -> None:
    """A request that breaks off, and work for it."""
    omnitrace.extract({"traceparent": f"00-{trace_id}-{CALLER}-01"}, trace_id)
    omnitrace.action("PD api server get request", trace_id)
    omnitrace.action("Start process request in prefill engine", trace_id, {"model": "m"})
    with omnitrace.span(NAMES[3], trace_id, {"tokens": 812, "of": "the request"}):
        for name in NAMES[4:]:
            with omnitrace.span(name, attributes={"share": 0.5, "last": False}):
                pass
    omnitrace.action("Finish prefill pickle and start response", trace_id)
