"""A certificate for loopback, made for one comparison by the openssl command, which Linux and macOS have."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from llmbatch.errors import OptionsError


def has_openssl() -> bool:
    return shutil.which("openssl") is not None


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1 and its key, both in ``directory``. Raises OptionsError if it can not be made."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=llmbatch compare", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    done = subprocess.run(  # noqa: S603  # our own words
        [*command, "-keyout", str(key), "-out", str(certificate), *names], capture_output=True, check=False
    )
    if done.returncode:
        raise OptionsError("openssl could not make a certificate for the comparison over https")
    return certificate, key
