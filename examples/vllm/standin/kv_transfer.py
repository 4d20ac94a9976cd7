"""The KV transfer between two engines, over TCP.

A prefill engine listens and holds the blocks of finished requests; a decode engine
connects for each request. Messages are JSON lines::

    decode → prefill   {"fetch": request id, "blocks": [block id, …]}
    prefill → decode   {"bytes": n} and n bytes, or {"error": text}
    decode → prefill   {"done": request id}     the blocks are no longer needed

"done" alone gives up blocks that nobody will fetch.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .options import BLOCK_BYTES

TIMEOUT_SECONDS = 30.0


class TransferError(Exception):
    """The blocks of a request could not be fetched."""


@dataclass(frozen=True)
class RemoteBlocks:
    """Where the blocks of one request are."""

    host: str
    port: int
    request_id: str
    """The internal id on the prefill node."""
    block_ids: tuple[int, ...]

    @classmethod
    def from_params(cls, params: dict[str, Any] | None) -> RemoteBlocks | None:
        """Read ``kv_transfer_params``; None unless they name blocks to fetch."""
        if not params or not params.get("do_remote_prefill"):
            return None
        try:
            return cls(
                host=str(params["remote_host"]),
                port=int(params["remote_port"]),
                request_id=str(params["remote_request_id"]),
                block_ids=tuple(int(block) for block in params["remote_block_ids"]),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def fetch(self) -> None:
        """Pull the blocks' bytes; they stay held until :meth:`done`."""
        message = {"fetch": self.request_id, "blocks": self.block_ids}
        try:
            with self._send(message) as connection, connection.makefile("rb") as file:
                answer = json.loads(file.readline())
                if "error" in answer:
                    raise TransferError(answer["error"])
                missing = answer["bytes"] - len(file.read(answer["bytes"]))
        except (OSError, ValueError) as error:
            raise TransferError(f"{self.host}:{self.port}: {error}") from error
        if missing:
            raise TransferError(f"{self.host}:{self.port}: {missing} bytes are missing")

    def done(self) -> None:
        """Tell the prefill node that it may free the blocks."""
        try:
            self._send({"done": self.request_id}).close()
        except OSError as error:
            raise TransferError(f"{self.host}:{self.port}: {error}") from error

    def _send(self, message: dict[str, Any]) -> socket.socket:
        address = (self.host, self.port)
        connection = socket.create_connection(address, TIMEOUT_SECONDS)
        connection.sendall(json.dumps(message).encode() + b"\n")
        return connection


class BlockServer:
    """Offers the held blocks of a prefill engine to decode engines."""

    def __init__(self, host: str, port: int, on_done: Callable[[str], None]) -> None:
        """Listen on ``host:port``; ``on_done`` is called with each id given back."""
        self._held: dict[str, frozenset[int]] = {}
        held = self._held

        class Handler(socketserver.StreamRequestHandler):
            timeout = TIMEOUT_SECONDS

            def handle(self) -> None:
                message = json.loads(self.rfile.readline())
                if "done" in message:
                    on_done(message["done"])
                elif held.get(message["fetch"], frozenset()).issuperset(message["blocks"]):
                    size = len(message["blocks"]) * BLOCK_BYTES
                    self._answer({"bytes": size})
                    self.wfile.write(bytes(size))
                else:
                    self._answer({"error": "the blocks are not held here"})

            def _answer(self, message: dict[str, Any]) -> None:
                self.wfile.write(json.dumps(message).encode() + b"\n")

        self._server = _Server((host, port), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="kv-server", daemon=True).start()

    def hold(self, request_id: str, block_ids: list[int]) -> None:
        """Offer the blocks of a request."""
        self._held[request_id] = frozenset(block_ids)

    def release(self, request_id: str) -> None:
        """Offer them no longer."""
        self._held.pop(request_id, None)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    # A burst of decode requests connects at once; the default backlog is 5.
    request_queue_size = 128
