"""A self-signed certificate with an ECDSA P-256 key, made by the ``openssl`` program.

Invariants:
- Every server that is measured over TLS has the same certificate.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files: the certificate, and its key."""

    cert: Path
    key: Path


def make_certificate(folder: Path) -> Certificate | str:
    """Make one for 127.0.0.1 in ``folder``.

    Returns:
        The certificate, or why there is none.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        return "no openssl program, to make a certificate"
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = [openssl, "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command += ["-days", "2", "-keyout", str(made.key), "-out", str(made.cert)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return f"openssl made no certificate: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    return made
