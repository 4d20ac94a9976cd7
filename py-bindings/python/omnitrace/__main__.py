"""``python -m omnitrace`` is the ``omnitrace`` command."""

from __future__ import annotations

import sys

from . import _command

if __name__ == "__main__":
    sys.exit(_command.become(sys.argv[1:]))
