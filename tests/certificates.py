"""Throwaway certificates, made by the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY_KIND = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Authority:
    """An authority that nobody trusts but who names its ``ca_file``; servers with a certificate of it."""

    directory: Path

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    def server(self, name: str = "IP:127.0.0.1", days: int = 1) -> ssl.SSLContext:
        """What a server needs to be ``name`` for so many days; with -1 it has been that until yesterday."""
        key, request, certificate = (self.directory / f"{name}{days}.{part}" for part in ("key", "csr", "pem"))
        _openssl("req", "-new", *KEY_KIND, "-keyout", key, "-out", request, "-subj", "/CN=server",
                 "-addext", f"subjectAltName={name}")  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.ca_file, "-CAkey", self.directory / "ca.key",
                 "-copy_extensions", "copy", "-days", days, "-out", certificate)  # fmt: skip
        return _context(certificate, key)

    def self_signed(self) -> ssl.SSLContext:
        return _context(self.ca_file, self.directory / "ca.key")


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _openssl(*args: object) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def authority(directory: Path) -> Authority:
    """A new one; skips the test where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    _openssl("req", "-x509", *KEY_KIND, "-keyout", directory / "ca.key", "-out", directory / "ca.pem",
             "-subj", "/CN=authority", "-addext", "subjectAltName=IP:127.0.0.1", "-days", 1)  # fmt: skip
    return Authority(directory)
