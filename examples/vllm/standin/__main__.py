"""``python -m standin --role prefill|decode``: see ``--help``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:
    # `python examples/vllm/standin` put this folder itself on the path, not its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from standin.options import parse


def main() -> None:
    """Start the node and serve until SIGTERM or SIGINT."""
    options = parse()
    # The engine process inherits these.
    os.environ["ROLE"] = options.role
    os.environ.setdefault("OTEL_SERVICE_NAME", f"vllm-{options.role}")

    # Only now: omnitrace finds its environment complete.
    from standin.api import serve

    serve(options)


if __name__ == "__main__":
    main()
