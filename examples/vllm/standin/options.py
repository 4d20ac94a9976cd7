"""The command line, and the options every part of the node is given."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["prefill", "decode"]

BLOCK_TOKENS = 16
"""Tokens whose keys and values one KV block holds."""

BLOCK_BYTES = 16 * 1024
"""Size of one KV block."""


@dataclass(frozen=True)
class Options:
    """What one node is told; the defaults are those of the command line."""

    role: Role
    host: str = "127.0.0.1"
    port: int = 8000
    side_channel_host: str = "127.0.0.1"
    side_channel_port: int = 0
    model: str = "standin"
    max_model_len: int = 8192
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 8192
    num_blocks: int = 8192
    step_ms: float = 10.0
    prefill_tokens_per_second: float = 20_000.0
    answer_tokens: int = 32
    stats_dir: Path | None = None


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="standin",
        description="A stand-in for one node of a vLLM prefill/decode pair.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--role", choices=["prefill", "decode"], required=True)
    add("--host", default=Options.host, help="address of the HTTP server")
    add("--port", type=int, default=Options.port, help="port of the HTTP server")
    add(
        "--side-channel-host",
        default=Options.side_channel_host,
        help="address at which a prefill node offers KV blocks",
    )
    add(
        "--side-channel-port",
        type=int,
        default=Options.side_channel_port,
        help="port at which a prefill node offers KV blocks, 0: any free one",
    )
    add("--model", default=Options.model, help="name of the served model")
    add(
        "--max-model-len",
        type=int,
        default=Options.max_model_len,
        help="limit on prompt plus answer, in tokens",
    )
    add(
        "--max-num-seqs",
        type=int,
        default=Options.max_num_seqs,
        help="limit on requests running at once",
    )
    add(
        "--max-num-batched-tokens",
        type=int,
        default=Options.max_num_batched_tokens,
        help="limit on tokens computed in one step",
    )
    add(
        "--num-blocks",
        type=int,
        default=Options.num_blocks,
        help=f"KV blocks of {BLOCK_TOKENS} tokens",
    )
    add(
        "--step-ms",
        type=float,
        default=Options.step_ms,
        help="time of one decode step",
    )
    add(
        "--prefill-tokens-per-second",
        type=float,
        default=Options.prefill_tokens_per_second,
        help="speed of prefill",
    )
    add(
        "--answer-tokens",
        type=int,
        default=Options.answer_tokens,
        help="length of an answer whose request sets no max_tokens",
    )
    add(
        "--stats-dir",
        type=Path,
        help="folder in which each process leaves its omnitrace.stats()",
    )
    options = Options(**vars(parser.parse_args(arguments)))
    if options.num_blocks * BLOCK_TOKENS < options.max_model_len:
        parser.error("--num-blocks are too few for one request of --max-model-len")
    return options
