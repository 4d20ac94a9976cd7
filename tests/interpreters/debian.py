"""CPython as Debian's suites have it, without touching this system's packages.

Packages are fetched by an apt of our own, unpacked into a folder, and its programs are told to use
that folder's C library.
"""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
SUITES = ["bullseye", "bookworm", "trixie", "sid"]
OLDEST = 9
"""Of CPython 3, that omnitrace supports."""

CONFIG = """\
Dir "{home}/";
Dir::State "{home}/state";
Dir::State::status "{home}/status";
Dir::Cache "{home}/cache";
Dir::Etc "{home}";
Dir::Etc::sourceparts "";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
// A mirror that is not updated any more will do.
Acquire::Check-Valid-Until "false";
"""


class DebianError(Exception):
    """A suite's interpreters cannot be had; the message says why."""


@dataclass
class Suite:
    """One suite, fetched into a folder."""

    name: str
    home: Path

    def interpreters(self) -> list[Path]:
        """Every CPython of the suite, ready to run."""
        self._configure()
        self._apt("apt-get", "update", "-q")
        listed = self._apt("apt-cache", "pkgnames", "python3.")
        names = re.findall(r"^python3\.\d+$", listed, re.MULTILINE)
        wanted = [name for name in sorted(names) if int(name.partition(".")[2]) >= OLDEST]
        return [self._interpreter(name) for name in wanted]

    def _configure(self) -> None:
        for folder in ("state/lists/partial", "cache", "preferences.d"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        (self.home / "status").touch()
        source = f"deb [signed-by={KEYRING}] {MIRROR} {self.name} main\n"
        (self.home / "sources.list").write_text(source)
        (self.home / "apt.conf").write_text(CONFIG.format(home=self.home))

    def _apt(self, *command: str) -> str:
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"APT_CONFIG": str(self.home / "apt.conf"), "PATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise DebianError(f"{self.name}: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout

    def _interpreter(self, package: str) -> Path:
        root = self.home / package
        program = root / "usr" / "bin" / package
        ready = root / "ready"
        if not ready.exists():
            archives = self.home / "archives" / package
            (archives / "partial").mkdir(parents=True, exist_ok=True)
            place = f"Dir::Cache::archives={archives}"
            self._apt("apt-get", "install", "--download-only", "-qq", "-y", "-o", place, package)
            for archive in archives.glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", archive, root], check=True)
            self._bind(root, program)
            ready.touch()
        return program

    def _bind(self, root: Path, program: Path) -> None:
        """Makes the program use the libraries it came with."""
        triplet = f"{platform.machine()}-linux-gnu"
        folders = [root / "lib" / triplet, root / "usr" / "lib" / triplet]
        loaders = [loader for folder in folders for loader in folder.glob("ld-linux*.so.*")]
        if not loaders:
            raise DebianError(f"{self.name}: there is no program loader in {root}")
        # The older kind of path, which counts for libraries of libraries too.
        paths = ":".join(str(folder) for folder in folders)
        options = ["--set-interpreter", str(loaders[0]), "--force-rpath", "--set-rpath", paths]
        subprocess.run(["patchelf", *options, str(program.resolve())], check=True)
