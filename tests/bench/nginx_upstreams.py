"""What the bench's nginx proxies to: a plain nginx, and an LLM server's stream."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass, field

TOKENS = 200
# Streams at once; each has a process of its own, so that nginx is what all of them wait for.
STREAMS = 32
EVENT = (
    'data: {"id":"chatcmpl-38a4c7f0c2b84b5a9c8e2f3b6d1e0f42","object":"chat.completion.chunk",'
    '"created":1795334645,"model":"deepseek-r1","choices":[{"index":0,"delta":{"content":" word"},'
    '"logprobs":null,"finish_reason":null}]}\n\n'
)


@dataclass
class StreamingServer:
    """Answers each request with a stream of TOKENS events, each sent by itself."""

    port: int = 0
    _processes: list[int] = field(default_factory=list)

    def start(self) -> StreamingServer:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = listener.getsockname()[1]
        for _ in range(STREAMS):
            pid = os.fork()
            if pid == 0:
                try:
                    _serve(listener)
                finally:
                    os._exit(1)
            self._processes.append(pid)
        listener.close()
        return self

    def close(self) -> None:
        for pid in self._processes:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _serve(listener: socket.socket) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    event = EVENT.encode()
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                piece = connection.recv(65536)
                if not piece:
                    raise ConnectionError("nginx has left")
                request += piece
            connection.sendall(head)
            for _ in range(TOKENS):
                connection.sendall(event)
            connection.sendall(b"data: [DONE]\n\n")
        except OSError:
            pass
        finally:
            connection.close()
