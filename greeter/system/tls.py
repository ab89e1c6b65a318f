"""TLS contexts for servers and clients, from PEM files.

Invariants:

- The minimum version is TLS 1.2 (RFC 8996).
- A file that cannot be used raises ConfigError with its name, before anything starts.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from greeter.errors import ConfigError
from greeter.system.input_files import read_input, reopenable

if TYPE_CHECKING:
    from os import PathLike

    Path = str | PathLike[str]


def server_context(cert: Path, key: Path | None = None, client_ca: Path | None = None) -> ssl.SSLContext:
    """Return a context for a server.

    Args:
        cert: A PEM file with the certificate chain.
        key: A PEM file with the private key, if it is not in ``cert``.
        client_ca: A PEM file with certificate authorities. If given, clients must present a certificate that
            one of them signed.

    Raises:
        ConfigError: A file cannot be read, or the key does not match the certificate.
    """
    return _server(cert, key, client_ca)[0]


def load_server_context(
    cert: Path, key: Path | None = None, client_ca: Path | None = None
) -> tuple[ssl.SSLContext, float]:
    """Return ``server_context()`` and the expiry of its certificate, in seconds since the epoch.

    Each file is read once, so it may be a pipe. Arguments and exceptions are those of ``server_context()``.
    """
    context, pem = _server(cert, key, client_ca)
    return context, _expiry(pem, cert)


def client_context(
    ca: Path | None = None, cert: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return a context for a client that verifies the server's certificate.

    Args:
        ca: A PEM file with the certificate authorities to trust. The default is those of the system.
        cert: A PEM file with the certificate chain to present.
        key: A PEM file with the private key, if it is not in ``cert``.

    Raises:
        ConfigError: A file cannot be read, or the key does not match the certificate.
    """
    context = ssl.create_default_context()
    if ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_authorities(context, ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None:
        _load_certificate(context, cert, key)
    return context


def certificate_expiry(cert: Path) -> float:
    """Return when the first certificate in a PEM file expires, in seconds since the epoch.

    Raises:
        ConfigError: The file cannot be read, or is not a certificate.
    """
    try:
        pem = read_input(cert)
    except OSError as error:
        raise ConfigError(f"cannot read the certificate {str(cert)!r}: {_error_text(error)}") from error
    return _expiry(pem, cert)


def _server(cert: Path, key: Path | None, client_ca: Path | None) -> tuple[ssl.SSLContext, bytes]:
    """Return the context of a server, and the contents of its certificate file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    pem = _load_certificate(context, cert, key)
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context, pem


def _load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None) -> bytes:
    """Load a certificate chain and its key into ``context``. Return the contents of the certificate file."""
    try:
        pem = read_input(cert)
        with reopenable(cert) as cert_path, reopenable(key or cert) as key_path:
            # Without a password callback, OpenSSL prompts for the password of an encrypted key.
            context.load_cert_chain(cert_path, key_path, password=lambda: _no_password(key or cert))
    except OSError as error:
        what = f"certificate {str(cert)!r}" + (f" with key {str(key)!r}" if key else "")
        reason = _error_text(error, "not valid PEM, or the key does not match")
        raise ConfigError(f"cannot use the {what}: {reason}") from error
    return pem


def _load_authorities(context: ssl.SSLContext, ca: Path) -> None:
    try:
        with reopenable(ca) as path:
            context.load_verify_locations(path)
    except OSError as error:
        raise ConfigError(
            f"cannot use the certificate authority {str(ca)!r}: {_error_text(error)}"
        ) from error


def _no_password(path: Path) -> str:
    raise ConfigError(f"the key in {str(path)!r} is encrypted, which is not supported")


def _error_text(error: Exception, invalid: str = "not valid PEM") -> str:
    if isinstance(error, ssl.SSLError):
        return f"{invalid} ({error.reason or error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return str(error)


def _expiry(pem: bytes, cert: Path) -> float:
    """Return when the first certificate in ``pem``, the contents of ``cert``, expires."""
    text = pem.decode("latin-1")  # comments may have any encoding; the rest is ASCII
    try:
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
        return _not_after(ssl.PEM_cert_to_DER_cert(text[begin:end]))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"cannot read the certificate {str(cert)!r}: {_error_text(error)}") from error


def _not_after(der: bytes) -> float:
    """Return the end of a certificate's validity (RFC 5280 4.1): the second time in its fifth element."""

    def element(at: int) -> tuple[int, int, int]:
        """Return the tag of the DER element at ``at``, and the start and end of its content (X.690 8.1)."""
        length, start = der[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, start = int.from_bytes(der[start : start + count], "big"), start + count
        return der[at], start, start + length

    at = element(element(0)[1])[1]  # tbsCertificate, the signed part
    if der[at] == 0xA0:  # the version is optional
        at = element(at)[2]
    for _ in ("serial number", "signature", "issuer"):
        at = element(at)[2]
    first = element(element(at)[1])
    tag, start, end = element(first[2])
    text = der[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime: two-digit years 50-99 are 19YY, others 20YY (RFC 5280 4.1.2.5.1)
        text = ("19" if text >= "5" else "20") + text
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    month = months[int(text[4:6]) - 1]
    clock = f"{text[8:10]}:{text[10:12]}:{text[12:14]}"
    return ssl.cert_time_to_seconds(f"{month} {int(text[6:8]):2d} {clock} {text[:4]} GMT")
