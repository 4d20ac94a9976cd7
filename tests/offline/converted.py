"""Logs and what `omnitrace convert` makes of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
COMMAND = Path(os.environ.get("OMNITRACE_COMMAND") or REPOSITORY / "target/release/omnitrace")


def convert(logs: Path, output: Path, *options: str) -> Path:
    """Converts, and says where the file is."""
    call = [str(COMMAND), "convert", "--quiet", *options, str(logs), str(output)]
    subprocess.run(call, check=True)
    return output


class Recorded(NamedTuple):
    """A span and the resource that has recorded it, both as OTLP has them in JSON."""

    resource: dict[str, Any]
    span: dict[str, Any]

    @property
    def process(self) -> str:
        """Service and node."""
        texts = {a["key"]: a["value"]["stringValue"] for a in self.resource["attributes"]}
        return " ".join(texts[key] for key in ("service.name", "host.ip") if key in texts)


def spans(lines: Path) -> list[Recorded]:
    """The spans of a file with OTLP as JSON in each line."""
    return [
        Recorded(resource["resource"], span)
        for line in lines.read_text(encoding="utf-8").splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
