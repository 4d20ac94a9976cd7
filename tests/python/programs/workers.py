"""Children by multiprocessing, which end as it ends them and never flush."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import omnitrace


def work(number: int) -> None:
    with omnitrace.span(f"child {number}"):
        omnitrace.action("PD api server get request", f"r{number}")
        omnitrace.action("Finish prefill pickle and start response", f"r{number}")


def main() -> None:
    context: Any = multiprocessing.get_context(sys.argv[1])
    with omnitrace.span("before"):
        pass
    children = [context.Process(target=work, args=(number,)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        pool.submit(work, 3).result()
    with omnitrace.span("after"):
        pass
    said = json.dumps([os.getpid(), [child.exitcode for child in children]])
    os.write(1, (said + "\n").encode())


if __name__ == "__main__":
    main()
