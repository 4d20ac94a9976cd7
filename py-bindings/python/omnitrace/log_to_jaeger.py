"""The old converter's command line, on the new converter.

    python -m omnitrace.log_to_jaeger LOG_DIR OUTPUT_JSON [--skip-req_num N] [--select-reqids A,B]

Takes the arguments of OmniInfer's ``log_to_jaeger.py`` and writes what it wrote: the chain of
45 spans and the four statistics traces. The work is done by the ``omnitrace`` command, which
the wheel brings along.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

from . import _command


def main(arguments: list[str] | None = None) -> int:
    """Converts; the exit status is 0 if the file was written, 1 if not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m omnitrace.log_to_jaeger",
        description="Convert OmniInfer's logs to a file for the Jaeger UI.",
    )
    parser.add_argument("log_dir", help="directory with the logs")
    parser.add_argument("output_json", help="file to write")
    parser.add_argument(
        "--skip-req_num",
        type=int,
        default=1,
        metavar="N",
        help="leave the first and the last N requests out of the statistics (default: 1)",
    )
    parser.add_argument(
        "--select-reqids",
        "--filter-reqids",
        metavar="ID,ID",
        help="write only the traces of these requests",
    )
    options = parser.parse_args(arguments)
    command = _command.find()
    if command is None:
        print(f"log_to_jaeger: {_command.MISSING}", file=sys.stderr)
        return 1
    # The old program took a negative number as none.
    skip = max(options.skip_req_num, 0)
    call = [command, "convert", "--layout", "legacy", f"--skip-req_num={skip}"]
    if options.select_reqids:
        call.append(f"--select-reqids={options.select_reqids}")
    try:
        status = subprocess.call([*call, "--", options.log_dir, options.output_json])
    except OSError as error:
        print(f"log_to_jaeger: {command} cannot be run: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # The command has had it too, and is gone.
        status = -signal.SIGINT
    if status < 0:
        # Whoever waits for this process must see how it ended.
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    if status == 0:
        print(f"Done. Output to {options.output_json}")
    return status


if __name__ == "__main__":
    sys.exit(main())
