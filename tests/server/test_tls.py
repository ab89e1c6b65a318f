"""TLS: the contexts, the dates of certificates, and the behaviour that clients of every kind see."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import select
import shutil
import signal
import socket
import ssl
import time
from datetime import UTC
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

import greeter
from greeter import ConfigError, Greeting, Peer, serve
from greeter.core.tls_session import TLSSession, describe_peer
from greeter.system.tls import certificate_expiry, client_context, load_server_context, server_context
from tests.conftest import PATIENCE, Process, greeter_process, one_loop, run_greeter
from tests.core.test_proxy_protocol import tcp4
from tests.server.conftest import let_deadlines_come
from tests.support.peers import connect, read_to_end, reset, until
from tests.support.service_peers import HELLO, lines_with

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from greeter.server import Server

KEY = ec.generate_private_key(ec.SECP256R1())


# -- certificates ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


class Files:
    """PEM files: the authority, a server's chain with its key, and each of the two alone."""

    def __init__(self, directory: Path, authority: trustme.CA) -> None:
        directory.mkdir(exist_ok=True)
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.both, self.cert, self.key = (directory / name for name in ("both.pem", "cert.pem", "key.pem"))
        self.renew(authority)

    def renew(self, authority: trustme.CA) -> None:
        """Another certificate for the same server."""
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(self.both)
        issued.cert_chain_pems[0].write_to_path(self.cert)
        issued.private_key_pem.write_to_path(self.key)


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"), authority)


@pytest.fixture(autouse=True)
def _handshakes_get_no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handshake is under way when these servers close; a real one waits 50 ms for them."""
    monkeypatch.setattr("greeter.server.server.HANDSHAKE_GRACE", 0.0)


@pytest.fixture
def client(files: Files) -> ssl.SSLContext:
    """The context of a client that trusts the authority."""
    return client_context(files.ca)


def certificate(
    not_after: datetime.datetime, *, issuer: str = "greeter", serial: int = 1, chain: int = 0
) -> bytes:
    """A self-signed certificate in PEM, and ``chain`` others behind it that end at another time."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, part) for part in issuer.split("/")])
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), serial)
    start = min(not_after, datetime.datetime(2000, 1, 1)) - datetime.timedelta(days=1)
    made = builder.not_valid_before(start).not_valid_after(not_after).sign(KEY, hashes.SHA256())
    pem = made.public_bytes(serialization.Encoding.PEM)
    return pem + (certificate(datetime.datetime(2099, 1, 1), chain=chain - 1) if chain else b"")


# -- the contexts ----------------------------------------------------------------------------------------


def test_the_oldest_version_is_1_2_on_both_sides(files: Files) -> None:
    for context in (server_context(files.both), client_context(), client_context(files.ca)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_client_verifies_the_server_and_its_name(files: Files) -> None:
    for context in (client_context(), client_context(files.ca)):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
    assert len(client_context(files.ca).get_ca_certs()) == 1


def test_client_certificates_are_asked_for_when_there_is_an_authority(files: Files) -> None:
    assert server_context(files.cert, files.key).verify_mode == ssl.CERT_NONE
    assert server_context(files.cert, files.key, files.ca).verify_mode == ssl.CERT_REQUIRED


def test_what_is_wrong_with_a_file_is_said_with_its_name(files: Files, tmp_path: Path) -> None:
    locked, other, text = tmp_path / "locked.pem", tmp_path / "other.pem", tmp_path / "text"
    encryption = serialization.BestAvailableEncryption(b"secret")
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(KEY.private_bytes(encoding, form, encryption))
    other.write_bytes(KEY.private_bytes(encoding, form, serialization.NoEncryption()))
    text.write_text("hello\n")
    none = tmp_path / "none"

    def message(make: Callable[[], object]) -> str:
        with pytest.raises(ConfigError) as caught:
            make()
        return str(caught.value)

    assert message(lambda: server_context(none)) == (
        f"cannot use the certificate '{none}': no such file or directory"
    )
    assert message(lambda: server_context(files.cert, none)) == (
        f"cannot use the certificate '{files.cert}' with key '{none}': no such file or directory"
    )
    for cert, key in ((text, None), (files.cert, None), (files.cert, other), (files.key, files.key)):
        shown = message(lambda cert=cert, key=key: server_context(cert, key))  # type: ignore[misc]  # mypy #15459
        assert str(key or cert) in shown
        assert "not valid PEM, or the key does not match" in shown
    assert message(lambda: server_context(files.cert, locked)) == (
        f"the key in '{locked}' is encrypted, which is not supported"
    )
    for ca, why in ((none, "no such file or directory"), (text, "not valid PEM")):
        start = f"cannot use the certificate authority '{ca}': {why}"
        assert message(lambda ca=ca: server_context(files.both, client_ca=ca)).startswith(start)  # type: ignore[misc]  # mypy #15459
        assert message(lambda ca=ca: client_context(ca)).startswith(start)  # type: ignore[misc]  # mypy #15459


# -- when a certificate expires --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "when",
    [
        "1970-01-01 00:00:00",
        "1999-12-31 23:59:59",
        "2000-01-01 00:00:00",
        "2024-02-29 12:30:45",
        "2049-12-31 23:59:59",  # the last UTCTime
        "2050-01-01 00:00:00",  # the first GeneralizedTime
        "9999-12-31 23:59:59",  # no end that is known (RFC 5280, 4.1.2.5)
    ],
)
def test_expiry_on_known_dates(when: str, tmp_path: Path) -> None:
    date = datetime.datetime.fromisoformat(when)
    (tmp_path / "cert").write_bytes(certificate(date))
    assert certificate_expiry(tmp_path / "cert") == date.replace(tzinfo=UTC).timestamp()


@given(
    when=st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 31)),
    issuer=st.integers(1, 64).map(lambda length: "/".join(["x" * length] * 6)),  # lengths of 1, 2 and 3 bytes
    serial=st.integers(1, 2**159 - 1),
    chain=st.integers(0, 2),
)
@settings(max_examples=25)
def test_expiry_is_what_cryptography_says(
    when: datetime.datetime,
    issuer: str,
    serial: int,
    chain: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pem = certificate(when.replace(microsecond=0), issuer=issuer, serial=serial, chain=chain)
    file = tmp_path_factory.getbasetemp() / "certificate"
    file.write_bytes(b"a comment, as openssl writes them\n" + pem)
    assert certificate_expiry(file) == x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def test_expiry_of_what_trustme_issues(files: Files) -> None:
    expected = x509.load_pem_x509_certificate(files.cert.read_bytes()).not_valid_after_utc
    assert certificate_expiry(files.cert) == certificate_expiry(files.both) == expected.timestamp()


def test_expiry_without_a_version(tmp_path: Path) -> None:
    """A certificate of 1988, X.509 version 1: the first element of what is signed is the serial number."""
    pem = certificate(datetime.datetime(2031, 5, 6))
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    version = bytes.fromhex("a003020102")
    assert der.count(version) == 1
    # The signature is wrong now, and so are both lengths, which do not matter to a parser that reads forward.
    (tmp_path / "cert").write_text(ssl.DER_cert_to_PEM_cert(der.replace(version, b"")))
    assert certificate_expiry(tmp_path / "cert") == datetime.datetime(2031, 5, 6, tzinfo=UTC).timestamp()


def test_comments_may_be_in_any_encoding(files: Files, tmp_path: Path) -> None:
    file = tmp_path / "cert"
    file.write_bytes("Müller\n".encode() + b"\xff\n" + files.both.read_bytes())
    assert certificate_expiry(file) == load_server_context(file)[1] == certificate_expiry(files.both)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="a shell has no names for pipes here")
def test_a_certificate_may_come_through_a_pipe(files: Files) -> None:
    """As a shell's <(...), which can be read once: a reload finds what the start has read."""
    reading, writing = os.pipe()
    with open(writing, "wb") as pipe:
        pipe.write(files.both.read_bytes())
    context, expires = load_server_context(f"/dev/fd/{reading}")
    assert expires == certificate_expiry(files.both)
    assert context.verify_mode == ssl.CERT_NONE
    assert os.read(reading, 1) == b""
    assert load_server_context(f"/dev/fd/{reading}")[1] == expires
    os.close(reading)


@pytest.mark.parametrize("case", ["no certificate", "no end", "no base64", "cut short", "missing"])
def test_a_certificate_that_cannot_be_read_is_named(case: str, tmp_path: Path) -> None:
    pem = certificate(datetime.datetime(2031, 5, 6)).decode()
    begin, *lines, end, _ = pem.split("\n")
    text = {
        "no certificate": "hello",
        "no end": pem.removesuffix(end + "\n"),
        "no base64": f"{begin}\n!\n{end}\n",
        "cut short": ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(pem)[:40]),
    }
    file = tmp_path / "cert"
    if case in text:
        file.write_text(text[case], encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        certificate_expiry(file)
    assert str(caught.value).startswith(f"cannot read the certificate '{file}': ")


def test_the_subject_of_a_client() -> None:
    assert describe_peer(None) == describe_peer({}) == ""
    subject = ((("countryName", "DE"),), (("organizationName", "Example"),), (("commonName", "alice"),))
    assert describe_peer({"subject": subject}) == "CN=alice,O=Example,C=DE"
    assert (
        describe_peer({"subject": ((("serialNumber", "7"), ("commonName", "b")),)}) == "serialNumber=7+CN=b"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a,O=X", r"a\,O\=X"),
        ("a+OU=X", r"a\+OU\=X"),
        (r"a\,O", r"a\\\,O"),
        ('"a";<b>', r"\"a\"\;\<b\>"),
        ("#a #b", r"\#a #b"),
        (" a b ", r"\ a b\ "),
        (" ", r"\ "),
        ("a\0b", r"a\00b"),
        ("", ""),
        ("grüße", "grüße"),
    ],
)
def test_no_part_of_a_name_passes_for_another(value: str, shown: str) -> None:
    assert describe_peer({"subject": ((("commonName", value),),)}) == f"CN={shown}"
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, value or "-")])
    assert x509.Name.from_rfc4514_string(f"CN={shown or '-'}") == name


def test_a_client_shows_a_certificate(files: Files, tmp_path: Path) -> None:
    assert client_context(files.ca, files.both).verify_mode == ssl.CERT_REQUIRED
    assert client_context(None, files.cert, files.key).check_hostname
    with pytest.raises(ConfigError, match=f"^cannot use the certificate '{tmp_path}/none': no such file"):
        client_context(files.ca, tmp_path / "none")


# -- clients ---------------------------------------------------------------------------------------------


class Visit:
    """What a strict client saw: one that takes an end without close_notify for an attack."""

    def __init__(self, data: bytes, error: OSError | None, version: str | None, serial: str) -> None:
        self.data, self.error, self.version, self.serial = data, error, version, serial


async def visit(
    port: int,
    context: ssl.SSLContext,
    says: Sequence[bytes] = (),
    *,
    receive_buffer: int = 0,
    rest: Callable[[], None] = lambda: None,
) -> Visit:
    """A strict client in a thread: it says something before it listens, and rests before each of the two."""

    def go() -> Visit:
        data, error, version, serial = b"", None, None, ""
        with socket.socket() as raw:
            raw.settimeout(PATIENCE)
            if receive_buffer:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            raw.connect(("127.0.0.1", port))
            try:
                with context.wrap_socket(
                    raw, server_hostname="localhost", suppress_ragged_eofs=False
                ) as sock:
                    version = sock.version()
                    serial = str((sock.getpeercert() or {}).get("serialNumber", ""))
                    for part in says:
                        rest()
                        sock.sendall(part)
                    rest()
                    while chunk := sock.recv(16384):
                        data += chunk
            except OSError as caught:
                error = caught
        return Visit(data, error, version, serial)

    return await asyncio.to_thread(go)


def is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def assert_greeted(seen: Visit, greeting: bytes = HELLO) -> None:
    assert seen.error is None
    assert len(seen.data) == len(greeting)
    assert seen.data == greeting


def assert_nothing_left(server: Server) -> None:
    stats = server.stats
    assert stats.open == 0
    assert stats.accepted == stats.greeted + sum(stats.failed.values()) + sum(stats.rejected.values())


@pytest.mark.usefixtures("no_fd_leak")
class TestServing:
    """In this process, on every loop."""

    async def test_a_strict_client_sees_the_greeting_and_a_clean_end(
        self, files: Files, client: ssl.SSLContext, accept: Any
    ) -> None:
        async with serve(accept=accept, port=0, ssl=server_context(files.both), access_log=False) as server:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                client.maximum_version = version
                seen = await visit(server.port, client)
                assert_greeted(seen)
                assert seen.version == version.name.replace("_", ".")
            await until(lambda: server.stats.open == 0, "they have left")
            assert server.stats.greeted == 2
            assert server.stats.bytes_sent == 2 * len(HELLO)
            assert_nothing_left(server)

    async def test_many_at_once(self, files: Files, client: ssl.SSLContext, accept: Any) -> None:
        async with serve(accept=accept, port=0, ssl=server_context(files.both), access_log=False) as server:
            replies = await asyncio.gather(
                *(
                    greeter.greet(port=server.port, ssl=client, server_hostname="localhost", timeout=PATIENCE)
                    for _ in range(30)
                )
            )
            assert [reply.data for reply in replies] == [HELLO] * 30
            assert not any(reply.reset for reply in replies)

    @pytest.mark.parametrize(
        "parts", [[18], [200_000], [18] * 10, [20_000] * 10], ids=["little", "much", "on", "on and on"]
    )
    async def test_clients_that_speak_first_are_greeted(
        self, files: Files, client: ssl.SSLContext, parts: list[int], accept: Any
    ) -> None:
        """Also those who go on speaking after our close_notify, and listen only then."""
        says = [b"x" * size for size in parts]
        tls = server_context(files.both)
        async with serve(accept=accept, port=0, ssl=tls, linger_timeout=PATIENCE, access_log=False) as server:
            visits = (visit(server.port, client, says, rest=lambda: time.sleep(0.005)) for _ in range(4))
            for seen in await asyncio.gather(*visits):
                assert_greeted(seen)
            await until(lambda: server.stats.open == 0, "they have left")
            assert_nothing_left(server)

    async def test_a_large_greeting_arrives_whole(
        self, files: Files, client: ssl.SSLContext, accept: Any
    ) -> None:
        greeting = bytes(range(256)) * 15625
        async with serve(
            greeting, accept=accept, port=0, ssl=server_context(files.both), access_log=False
        ) as server:
            for seen in await asyncio.gather(*(visit(server.port, client) for _ in range(3))):
                assert_greeted(seen, greeting)
            assert server.stats.bytes_sent == 3 * len(greeting)

    async def test_a_slow_reader_has_until_the_greet_deadline(
        self, files: Files, client: ssl.SSLContext, accept: Any
    ) -> None:
        """What the kernel has not taken yet does not get lost at the linger deadline, which is earlier."""
        greeting = b"g" * 60_000
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # also for those that it accepts
        tls = server_context(files.both)
        async with serve(
            greeting, accept=accept, sock=listening, ssl=tls, linger_timeout=0.1, access_log=False
        ) as server:
            seen = await visit(server.port, client, receive_buffer=4096, rest=lambda: time.sleep(0.25))
            assert_greeted(seen, greeting)

    async def test_for_a_client_that_does_not_read_one_record_is_encrypted_at_a_time(
        self, files: Files, client: ssl.SSLContext, accept: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pieces: list[int] = []
        encrypt = TLSSession.encrypt

        def recorded(session: TLSSession, data: bytes) -> Iterator[tuple[bytes, bool]]:
            for piece, last in encrypt(session, data):
                pieces.append(len(piece))
                yield piece, last

        monkeypatch.setattr(TLSSession, "encrypt", recorded)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # also for those that it accepts
        async with serve(
            b"g" * 4_000_000,
            sock=listening,
            ssl=server_context(files.both),
            greet_timeout=PATIENCE,
            access_log=False,
            accept=accept,
        ) as server:
            with socket.socket() as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                raw.settimeout(PATIENCE)
                await asyncio.to_thread(raw.connect, ("127.0.0.1", server.port))
                with await asyncio.to_thread(client.wrap_socket, raw, server_hostname="localhost") as sock:
                    await until(lambda: is_readable(sock), "the greeting has begun")
                    for _ in range(1000):  # turns of the loop: if it went on encrypting, it would do so now
                        await asyncio.sleep(0)
                    let_deadlines_come(server)
                    await until(lambda: server.stats.failed["greet_timeout"] == 1, "cut off")
        assert max(pieces) < 20_000
        assert sum(pieces) < 100_000

    async def test_a_client_that_never_reads_is_cut_off(
        self, files: Files, client: ssl.SSLContext, accept: Any
    ) -> None:
        async with serve(
            b"g" * 4_000_000,
            port=0,
            ssl=server_context(files.both),
            greet_timeout=PATIENCE,
            access_log=False,
            accept=accept,
        ) as server:
            with socket.socket() as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                raw.settimeout(PATIENCE)
                await asyncio.to_thread(raw.connect, ("127.0.0.1", server.port))
                sock = await asyncio.to_thread(client.wrap_socket, raw, server_hostname="localhost")
                with sock:
                    await until(lambda: is_readable(sock), "the greeting has begun")
                    let_deadlines_come(server)
                    await until(lambda: server.stats.failed["greet_timeout"] == 1, "cut off")
                    await until(lambda: server.stats.open == 0, "gone")
            assert_nothing_left(server)

    async def test_a_client_that_never_closes_is_cut_off(
        self, files: Files, client: ssl.SSLContext, accept: Any
    ) -> None:
        async with serve(
            port=0,
            ssl=server_context(files.both),
            linger_timeout=0.2,
            access_log=False,
            accept=accept,
        ) as server:
            seen, below = await asyncio.to_thread(self._never_closes, server.port, client)
            with below:
                assert seen == HELLO
                await until(lambda: server.stats.open == 0, "gone")
            assert server.stats.greeted == server.stats.linger_timeouts == 1
            assert_nothing_left(server)

    @staticmethod
    def _never_closes(port: int, context: ssl.SSLContext) -> tuple[bytes, socket.socket]:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as sock,
        ):
            data = b""
            while chunk := sock.recv(100):
                data += chunk
            # The stream has ended. There is no answer to that.
            return data, socket.socket(fileno=sock.detach())

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
    async def test_tls_1_1_is_refused(
        self, files: Files, client: ssl.SSLContext, caplog: pytest.LogCaptureFixture, accept: Any
    ) -> None:
        caplog.set_level(logging.INFO, "greeter")
        client.set_ciphers("DEFAULT@SECLEVEL=0")  # or OpenSSL would not even offer it
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
        async with serve(accept=accept, port=0, ssl=server_context(files.both), access_log=False) as server:
            seen = await visit(server.port, client)
            assert seen.data == b""
            assert seen.error is not None
            await until(lambda: server.stats.failed["tls"] == 1, "counted")
            await until(lambda: server.stats.open == 0, "gone")
            assert "no TLS handshake (unsupported protocol)" in caplog.text
            assert_nothing_left(server)

    async def test_client_certificates(
        self, files: Files, authority: trustme.CA, client: ssl.SSLContext, accept: Any
    ) -> None:
        peers: list[Peer] = []

        def hello(peer: Peer) -> str:
            peers.append(peer)
            return f"Hello {peer.tls_subject}"

        context = server_context(files.cert, files.key, files.ca)
        greeting = Greeting(hello, quick=True)
        async with serve(greeting, accept=accept, port=0, ssl=context, access_log=False) as server:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                client.maximum_version = version
                unknown = await visit(server.port, client)
                assert unknown.data == b""
                assert unknown.error is not None
            stranger = trustme.CA(key_type=trustme.KeyType.ECDSA)
            forged = client_context(files.ca)
            stranger.issue_cert("mallory@example.org", common_name="alice").configure_cert(forged)
            assert (await visit(server.port, forged)).data == b""
            await until(lambda: server.stats.failed["tls"] == 3, "counted")
            assert peers == []
            authority.issue_cert(
                "alice@example.org", common_name="alice", organization_name="Example"
            ).configure_cert(client)
            seen = await visit(server.port, client)
            (peer,) = peers
            assert peer.tls_version == "TLSv1.3"
            assert "CN=alice" in peer.tls_subject.split(",")
            assert "O=Example" in peer.tls_subject.split(",")
            assert_greeted(seen, f"Hello {peer.tls_subject}".encode())
            await until(lambda: server.stats.open == 0, "gone")
            assert_nothing_left(server)

    async def test_without_client_certificates_there_is_a_version_and_no_subject(
        self, files: Files, client: ssl.SSLContext, accept: Any
    ) -> None:
        async def hello(peer: Peer) -> str:
            return f"{peer.tls_version} {peer.tls_subject!r}"

        async with serve(
            hello, accept=accept, port=0, ssl=server_context(files.both), access_log=False
        ) as server:
            assert_greeted(await visit(server.port, client), b"TLSv1.3 ''")
        async with serve(hello, accept=accept, port=0, access_log=False) as server:
            assert (await greeter.greet(port=server.port)).data == b" ''"

    async def test_a_header_and_a_client_hello_in_one_segment(
        self, files: Files, client: ssl.SSLContext, accept: Any
    ) -> None:
        """Which hangs StreamWriter.start_tls (cpython #142352)."""
        async with serve(
            "$host $port",
            accept=accept,
            port=0,
            ssl=server_context(files.both),
            proxy_from=["127.0.0.1"],
            greet_timeout=PATIENCE,
            access_log=False,
        ) as server:
            header = tcp4("192.0.2.1", "198.51.100.7", "56324", "443")
            sock = await connect(server.port)
            assert await handshake_in_memory(sock, client, header) == b"192.0.2.1 56324"
            # ... and apart, with the header cut in two.
            sock = await connect(server.port)
            sock.send(header[:9])
            await until(lambda: server.stats.open == 1, "half of it is there")
            assert await handshake_in_memory(sock, client, header[9:]) == b"192.0.2.1 56324"
            await until(lambda: server.stats.open == 0, "gone")
            assert server.stats.greeted == 2
            assert_nothing_left(server)

    @pytest.mark.parametrize(
        "fault", ["reset", "reset after a part", "garbage", "end", "stall", "stall after a part"]
    )
    async def test_a_handshake_that_fails_costs_its_client_only(
        self, files: Files, client: ssl.SSLContext, fault: str, caplog: pytest.LogCaptureFixture, accept: Any
    ) -> None:
        async with serve(
            port=0,
            ssl=server_context(files.both),
            greet_timeout=0.2 if "stall" in fault else 600,
            access_log=False,
            accept=accept,
        ) as server:
            with caplog.at_level(logging.INFO, "greeter"):
                sock = await connect(server.port)
                name = repr(sock.getsockname())
                if "part" in fault:
                    sock.send(client_hello(client)[:60])
                await until(lambda: server.stats.open == 1, "the handshake has begun")
                if fault.startswith("reset"):
                    reset(sock)
                elif fault == "garbage":
                    sock.send(b"GET / HTTP/1.0\r\n\r\n" * 20)
                elif fault == "end":
                    sock.shutdown(socket.SHUT_WR)
                if not fault.startswith("reset"):
                    outcome = await read_to_end(sock)
                    assert HELLO not in outcome.data
                    assert len(outcome.data) <= 7, "an alert at the most"
                await until(lambda: server.stats.open == 0, "cut off")
            why = "greet_timeout" if "stall" in fault else "tls"
            assert {name: n for name, n in server.stats.failed.items() if n} == {why: 1}
            assert_nothing_left(server)
            lines = [record.getMessage() for record in caplog.records if record.name == "greeter"]
            if fault in ("reset", "end"):  # it sent nothing, as a health check: no line without an access log
                assert lines == []
            else:
                (line,) = lines
                assert line.startswith(f"{name}: ")
            assert "asyncio" not in {record.name for record in caplog.records}
            server._tracker.ungreeted.seconds = 600  # the next one is not to be judged by its time
            assert_greeted(await visit(server.port, client))

    async def test_a_certificate_is_renewed_for_the_next_client(
        self, authority: trustme.CA, tmp_path: Path, accept: Any
    ) -> None:
        own = Files(tmp_path, authority)
        client = client_context(own.ca)
        async with serve(accept=accept, port=0, ssl=server_context(own.both), access_log=False) as server:
            before = await visit(server.port, client)
            own.renew(authority)
            server.update(tls=server_context(own.both))
            after = await visit(server.port, client)
            assert_greeted(before)
            assert_greeted(after)
            assert before.serial != after.serial
        async with serve(accept=accept, port=0, access_log=False) as server:
            with pytest.raises(ConfigError, match="cannot be turned on while serving"):
                server.update(tls=server_context(own.both), greeting="new")
            assert (await greeter.greet(port=server.port)).data == HELLO

    async def test_a_drain_lets_a_handshake_finish(
        self, files: Files, client: ssl.SSLContext, accept: Any
    ) -> None:
        server = await serve(accept=accept, port=0, ssl=server_context(files.both), access_log=False)
        sock = await connect(server.port)
        await until(lambda: server.stats.open == 1, "the handshake has begun")
        draining = asyncio.create_task(server.drain())
        await until(lambda: not server.is_serving(), "it accepts no more")
        assert await handshake_in_memory(sock, client) == HELLO
        assert await draining is True
        assert_nothing_left(server)

    async def test_a_drain_cuts_off_a_handshake_at_its_deadline(self, files: Files, accept: Any) -> None:
        server = await serve(accept=accept, port=0, ssl=server_context(files.both), access_log=False)
        sock = await connect(server.port)
        await until(lambda: server.stats.open == 1, "the handshake has begun")
        assert await server.drain(0.1) is False
        assert (await read_to_end(sock)).data == b""
        assert server.stats.failed["aborted"] == 1
        assert_nothing_left(server)


def client_hello(context: ssl.SSLContext) -> bytes:
    """The first thing that a client says."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


async def handshake_in_memory(sock: socket.socket, context: ssl.SSLContext, first: bytes = b"") -> bytes:
    """What is heard by a client that sends ``first`` and its ClientHello in one segment."""
    loop = asyncio.get_running_loop()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    data = b""
    with sock:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    tls.do_handshake()
                    while chunk := tls.read(100):
                        data += chunk
                    return data
                except ssl.SSLWantReadError:
                    if said := first + outgoing.read():
                        first = b""
                        assert sock.send(said) == len(said)
                    received = await loop.sock_recv(sock, 65536)
                    assert received, "an end of stream without close_notify"
                    incoming.write(received)


# -- in a process of its own -----------------------------------------------------------------------------


def serving(*args: str) -> contextlib.AbstractAsyncContextManager[Process]:
    return greeter_process("serve", "--listen", "127.0.0.1:0", *args)


@one_loop
async def test_greet_speaks_tls(files: Files) -> None:
    async with serving("--tls-cert", str(files.cert), "--tls-key", str(files.key)) as server:
        greet = ("greet", server.address, "--tls")
        assert await run_greeter(*greet, "--tls-ca", str(files.ca)) == (0, HELLO.decode() + "\n", "")
        named = (*greet, "--tls-ca", str(files.ca), "--server-name")
        assert (await run_greeter(*named, "localhost"))[:2] == (0, HELLO.decode() + "\n")
        for args in ((*named, "example.org"), greet):
            code, out, err = await run_greeter(*args)
            assert (code, out) == (1, "")
            assert err.startswith(f"greeter: cannot connect to {server.address}: ")
            assert "certificate" in err
            assert err.count("\n") == 1
        assert await server.stop() == 0
    assert server.lines[-1] == "Stopped: 2 greeted of 4 accepted, 2 failed"


@one_loop
async def test_a_hangup_renews_the_certificate_and_a_broken_one_changes_nothing(
    authority: trustme.CA, tmp_path: Path
) -> None:
    own = Files(tmp_path, authority)
    client = client_context(own.ca)
    async with serving("--tls-cert", str(own.both), "--loop", "asyncio") as server:
        first = await visit(server.port, client)
        own.renew(authority)
        server.process.send_signal(signal.SIGHUP)
        await server.line_with("Reloaded")
        second = await visit(server.port, client)
        for number, broken in enumerate((b"", own.cert.read_bytes(), own.both.read_bytes()[:200]), 1):
            own.both.write_bytes(broken)
            server.process.send_signal(signal.SIGHUP)
            line = (await lines_with(server, "reload failed", number))[-1]
            assert line.startswith("error: reload failed, the old configuration stays: cannot use the cert")
            assert str(own.both) in line
        third = await visit(server.port, client)
        for seen in (first, second, third):
            assert_greeted(seen)
        assert first.serial != second.serial == third.serial
        assert await server.stop() == 0


OPENSSL = shutil.which("openssl")


@one_loop
@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
async def test_openssl_is_greeted(files: Files, authority: trustme.CA, version: str, tmp_path: Path) -> None:
    assert OPENSSL is not None
    own = tmp_path / "client.pem"
    authority.issue_cert(
        "alice@example.org", common_name="alice"
    ).private_key_and_cert_chain_pem.write_to_path(own)
    args = ("--tls-cert", str(files.both), "--tls-client-ca", str(files.ca))
    async with serving(*args) as server:
        child = await asyncio.create_subprocess_exec(
            *(OPENSSL, "s_client", "-connect", server.address, f"-{version}", "-quiet", "-cert", str(own)),
            *("-CAfile", str(files.ca), "-verify_return_error", "-verify_hostname", "localhost"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE):
            assert child.stdout is not None
            out = await child.stdout.read()
            _, err = await child.communicate()
        assert out == HELLO
        assert child.returncode == 0, err
        assert await server.stop() == 0
    assert server.lines[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"
