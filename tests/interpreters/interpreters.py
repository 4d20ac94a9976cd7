"""Tests the wheel on every CPython that can be had here, and prints what came of it.

Those on the PATH and of pyenv, and those of Debian's suites. The tests themselves run on one
interpreter, their programs on the others: what these import is put into a folder for each.

    python tests/interpreters/interpreters.py WHEEL [-k EXPRESSION]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from debian import OLDEST, SUITES, DebianError, Suite

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "target" / "interpreters"
# What the tests' programs import, in the newest version that is for the interpreter.
PACKAGES = ("opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk")
PEERS = (
    "httpx", "opentelemetry-instrumentation-fastapi[instruments]",
    "opentelemetry-instrumentation-httpx", "uvicorn",
)  # fmt: skip
# It does without its C part, which a new CPython has no wheel of.
PURE, ANY_VERSION = "PyYAML", "3.13"
ABOUT = (
    "import platform, sysconfig; print(platform.python_implementation(), platform.python_version(),"
    "platform.libc_ver()[1], 'free-threaded' if sysconfig.get_config_var('Py_GIL_DISABLED') else '')"
)


@dataclass
class Interpreter:
    """One CPython, and what came of the tests there."""

    path: Path
    origin: str
    version: str = ""
    libc: str = ""
    outcome: str = ""


def about(path: Path, origin: str) -> Interpreter | None:
    """None: this is no CPython that the wheel is for."""
    done = subprocess.run([path, "-c", ABOUT], capture_output=True, text=True)
    if done.returncode:
        return None
    kind, version, libc, *free_threaded = done.stdout.split()
    if kind != "CPython" or int(version.split(".")[1]) < OLDEST or free_threaded:
        return None
    return Interpreter(path, origin, version, libc)


def local() -> list[Interpreter]:
    """Those of this machine, each version once."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders += sorted(pyenv.glob("*/bin"))
    found: dict[str, Interpreter] = {}
    for folder in folders:
        for path in folder.glob("python3.*"):
            if re.fullmatch(r"python3\.\d+", path.name) and (it := about(path, "this machine")):
                found.setdefault(it.version, it)
    return sorted(found.values(), key=lambda it: [int(n) for n in it.version.split(".")])


def debian() -> list[Interpreter]:
    found = []
    for name in SUITES:
        try:
            paths = Suite(name, FOLDER / name).interpreters()
        except (DebianError, FileNotFoundError) as error:
            print(f"interpreters: {error}", file=sys.stderr)
            continue
        found += [it for path in paths if (it := about(path, f"Debian {name}"))]
    return found


def prepare(interpreter: Interpreter, wheel: str) -> Path:
    """A folder with the wheel and what the tests' programs import, for this interpreter."""
    site = FOLDER / f"site-{interpreter.version}"
    shutil.rmtree(site, ignore_errors=True)
    # A new CPython has no wheels yet of what some need: the tests that do are left out.
    for packages in ([*PACKAGES, *PEERS], PACKAGES):
        done = install(site, interpreter.version, wheel, *packages)
        if done.returncode == 0:
            done = install(site, ANY_VERSION, PURE)
            break
    if done.returncode:
        raise SystemExit(f"CPython {interpreter.version}: {done.stderr}")
    return site


def install(site: Path, version: str, *packages: str) -> subprocess.CompletedProcess[str]:
    """Puts packages into a folder, as an interpreter of this version would: it may not have pip
    itself, nor be able to run beside this system's libraries."""
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--only-binary", ":all:"]
    command += ["--python-version", version, "--target", str(site), *packages]
    return subprocess.run(command, capture_output=True, text=True)


def test(interpreter: Interpreter, wheel: str, selection: list[str]) -> Interpreter:
    """Runs the tests whose programs can run elsewhere."""
    site = prepare(interpreter, wheel)
    tests = REPOSITORY / "tests" / "python"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-rfE", str(tests), *selection],
        cwd=REPOSITORY,
        env={**os.environ, "OMNITRACE_PYTHON": str(interpreter.path), "OMNITRACE_SITE": str(site)},
        capture_output=True,
        text=True,
    )
    log = FOLDER / f"{interpreter.origin} {interpreter.version}.log".replace(" ", "-")
    log.write_text(done.stdout + done.stderr)
    last = done.stdout.strip().splitlines()[-1:]
    interpreter.outcome = re.sub(r" in .*", "", "".join(last)).strip("= ")
    if done.returncode:
        interpreter.outcome += f"; see {log.relative_to(REPOSITORY)}"
    return interpreter


def main(wheel: str, *selection: str) -> int:
    interpreters = [*local(), *debian()]
    print(f"{Path(wheel).name}\n{'CPython':<10}{'glibc':<8}{'from':<18}tests", flush=True)
    # Tests mostly wait.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for it in pool.map(lambda it: test(it, wheel, list(selection)), interpreters):
            print(f"{it.version:<10}{it.libc:<8}{it.origin:<18}{it.outcome}", flush=True)
    wrong = [it for it in interpreters if "failed" in it.outcome or "passed" not in it.outcome]
    return 1 if wrong or not interpreters else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
