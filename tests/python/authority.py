"""Certificates of an authority that only the test trusts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Authority:
    """Files of an authority, a server on 127.0.0.1, and a client."""

    trusted: str
    server: str
    server_key: str
    client: str
    client_key: str

    @classmethod
    def new(cls, folder: Path) -> Authority:
        own = trustme.CA()
        files = [("trusted", own.cert_pem)]
        for name, host in [("server", "127.0.0.1"), ("client", "client.example")]:
            issued = own.issue_cert(host)
            [certificate] = issued.cert_chain_pems
            files += [(name, certificate), (f"{name}_key", issued.private_key_pem)]
        for name, text in files:
            text.write_to_path(folder / f"{name}.pem")
        return cls(**{name: str(folder / f"{name}.pem") for name, _ in files})

    def context(self, asks_clients: bool = False) -> ssl.SSLContext:
        """For a server; it talks to clients of this authority alone if it asks them."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server, self.server_key)
        if asks_clients:
            context.load_verify_locations(self.trusted)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
