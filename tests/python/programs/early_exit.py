"""Records when omnitrace has ended: from a handler that was there before it."""

from __future__ import annotations

import atexit
import json
import logging
import os
from typing import Any

logging.basicConfig(format="LOG %(levelname)s %(name)s: %(message)s")


def late() -> None:
    for _ in range(2):
        with omnitrace.span("too late"):
            pass
    books: Any = omnitrace.stats()
    said = [books[name] for name in ("created", "exported", "logged", "dropped")]
    os.write(1, (json.dumps(said) + "\n").encode())


atexit.register(late)

import omnitrace  # noqa: E402

atexit.register(lambda: omnitrace.span("late")(int)())
with omnitrace.span("in time"):
    pass
