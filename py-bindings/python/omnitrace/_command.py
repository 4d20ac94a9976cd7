"""Where the ``omnitrace`` command is that this distribution has installed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

VARIABLE = "OMNITRACE_COMMAND"
"""Names another command."""

DISTRIBUTION = "omnitrace-sdk"
NAME = "omnitrace"

MISSING = (
    "there is no omnitrace command: this installation was built without it. Install a wheel "
    f"that `make wheel` has built, put the command on the PATH, or name it in {VARIABLE}"
)


def find() -> str | None:
    """The command's path: the one that the environment names, else the one that was installed
    together with this package, else the first on the PATH. None if there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    own = next((str(path) for path in _installed() if os.access(path, os.X_OK)), None)
    return own or shutil.which(NAME)


def _installed() -> Iterator[Path]:
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == NAME and file.parent.name == "bin":
            yield Path(str(file.locate()))
    # `pip install --target` has moved it after it was written down.
    yield Path(__file__).resolve().parents[1] / "bin" / NAME


def become(arguments: list[str]) -> int:
    """Runs the command in place of this process; returns only if it cannot be run, with the
    exit status for that."""
    command = find()
    if command is None:
        print(f"omnitrace: {MISSING}", file=sys.stderr)
        return 1
    try:
        os.execv(command, [NAME, *arguments])
    except OSError as error:
        print(f"omnitrace: {command} cannot be run: {error.strerror}", file=sys.stderr)
        return 1
