"""Profiles: what a client of a well-known protocol says first, and what ends its greeting.

Invariants:

- A profile only sets arguments. It judges nothing.
- A reply of 4yz or 5yz instead of the greeting is a refusal (RFC 5321 3.1, RFC 959 5.4).
- A protocol is polite if its client must wait for the greeting: then no check speaks first (RFC 5321 4.3.1
  for SMTP, RFC 959 5.4 for FTP; the client of MySQL answers the server's handshake packet).
"""

from __future__ import annotations

from dataclasses import dataclass

from greeter.core.replies import Until
from greeter.errors import ConfigError

MUCH = 200_000  # bytes, what a client sends that sends much


@dataclass(frozen=True, slots=True)
class Profile:
    """What a protocol sets; the attributes are those of ``CheckPlan``."""

    send: bytes = b""
    send_much: bytes = b""
    hello: bytes = b""
    until: Until = Until("eof")
    polite: bool = False
    begins: tuple[bytes, ...] = ()


PROFILES: dict[str, Profile] = {
    "raw": Profile(),
    "http": Profile(
        send=b"GET / HTTP/1.0\r\n\r\n",
        send_much=f"GET / HTTP/1.0\r\nContent-Length: {MUCH}\r\n\r\n".encode(),
        hello=b"GET / HTTP/1.0\r\n\r\n",
    ),
    "ssh": Profile(hello=b"SSH-2.0-check\r\n", until=Until("line")),
    "smtp": Profile(until=Until("reply"), polite=True, begins=(b"2",)),
    "ftp": Profile(until=Until("reply"), polite=True, begins=(b"1", b"2")),
    "mysql": Profile(until=Until("bytes", size=4), polite=True),
    "redis": Profile(send=b"PING\r\n", hello=b"PING\r\n", until=Until("line")),
}


def profile(name: str, *, send: bytes | None, hello: bytes | None, until: Until | None) -> Profile:
    """Returns a profile with what was given beside it.

    Args:
        name: The name of the profile.
        send: What a client says, if it was given.
        hello: What a client says that speaks first, if it was given.
        until: What ends the greeting, if it was given.

    Raises:
        ConfigError: What was given contradicts the profile.
    """
    found = PROFILES[name]
    for option, given, known in (("--send", send, found.send), ("--hello", hello, found.hello)):
        if given is not None and known and given != known:
            raise ConfigError(f"{option} contradicts --profile {name}, which sends something itself")
        if given is not None and found.polite and option == "--hello":
            raise ConfigError(f"--hello contradicts --profile {name}: its clients wait for the greeting")
    return Profile(
        found.send if send is None else send,
        found.send_much,
        found.hello if hello is None else hello,
        found.until if until is None else until,
        found.polite,
        found.begins,
    )
