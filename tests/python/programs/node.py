"""One request on one vLLM node: an API process and a spawned engine process.

Records the steps given as JSON, `[[process, action, attributes], …]`, in order. Where
the process changes, what `inject` wrote goes along, as vLLM hands `trace_headers` on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from typing import Any

import omnitrace

Step = tuple[str, str, dict[str, object]]


def record(request_id: str, step: Step) -> None:
    _, action, attributes = step
    omnitrace.action(action, request_id, attributes)


def books(process: str) -> None:
    omnitrace.flush()
    omnitrace.shutdown()
    said = json.dumps([process, os.getpid(), omnitrace.stats()])
    os.write(1, (said + "\n").encode())


def engine(request_id: str, pipe: Connection) -> None:
    while (message := pipe.recv()) is not None:
        carrier, step = message
        if carrier is not None:
            omnitrace.extract(carrier, request_id)
        record(request_id, step)
        back: dict[str, str] = {}
        omnitrace.inject(back, request_id)
        pipe.send(back)
    books("engine")


def main() -> None:
    headers: dict[str, str] = json.loads(sys.argv[1])
    steps: list[Step] = json.loads(sys.argv[2])
    api_id, engine_id = sys.argv[3:5]
    pipe, far = multiprocessing.Pipe()
    spawn: Any = multiprocessing.get_context("spawn")
    child = spawn.Process(target=engine, args=(engine_id, far))
    child.start()
    omnitrace.extract(headers, api_id)
    here = "api"
    back: dict[str, str] = {}
    for step in steps:
        process = step[0]
        if process == "api":
            if here == "engine":
                omnitrace.extract(back, api_id)
            record(api_id, step)
        else:
            carrier: dict[str, str] = {}
            if here == "api":
                omnitrace.inject(carrier, api_id)
            pipe.send((carrier or None, step))
            back = pipe.recv()
        here = process
    pipe.send(None)
    child.join()
    books("api")


if __name__ == "__main__":
    main()
