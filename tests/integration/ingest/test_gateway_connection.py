"""What a trainer makes of HTTP: each kind of error, redirects, proxies, certificates, and the size of requests."""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import pytest
import zstandard
from msgspec.msgpack import decode

from tests.tls_servers import UNTRUSTED, Tls
from trainwire import Run, TrainerSettings
from trainwire.ingest.sending.transports.gateway_connection import REQUEST_BYTES, GatewayConnection, shares
from trainwire.ingest.sending.unacked import EncodedMessage
from trainwire.ingest.servers.outage import Refused, Unavailable
from trainwire.ingest.settings.setting_groups import SpoolSettings, Timing
from trainwire.ingest.strict import RedisAway
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import Entry, open_envelope
from trainwire.schemas.wire.exchange import CONTENT_TYPE, ExchangeAnswer, encode_exchange
from trainwire.schemas.wire.messages import Metrics

JOB: Final = 42
PATH: Final = f"/jobs/{JOB}/messages"
Reply = tuple[int, dict[str, str], bytes]
VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE")


def problem(status: int, detail: str) -> Reply:
    """Return a response of the gateway with a problem."""
    return status, {"Content-Type": "application/problem+json"}, json.dumps({"detail": detail}).encode()


class ScriptedGateway:
    """A gateway that takes and acknowledges everything, unless the test has put another reply before it."""

    def __init__(self) -> None:
        self.replies: list[Reply | Callable[[bytes], Reply | None]] = []
        self.requests: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.seqs: dict[str, list[int]] = {}
        self.always: Callable[[bytes], Reply | None] = lambda _body: None
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                scripted.headers.append({"path": self.path, **dict(self.headers)})
                status, headers, content = scripted.reply(body)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, body: bytes) -> Reply:
        """Return the reply to a request."""
        scripted = self.replies.pop(0) if self.replies else None
        found = scripted(body) if callable(scripted) else scripted
        found = found or self.always(body)
        if found is not None:
            return found
        request: dict[str, Any] = decode(zstandard.decompress(body))
        self.requests.append(request)
        self.sizes.append(len(body))
        taken = {}
        for kind, entries in request.get("entries", {}).items():
            self.seqs.setdefault(kind, []).extend(entry["seq"] for entry in entries)
            taken[kind] = len(entries)
        acks = {kind: (str(max(self.seqs[kind])).encode(), None, None) for kind in request.get("acks", ())}
        answer = ExchangeAnswer(taken=taken, acks=acks)  # type: ignore[arg-type]
        return 200, {"Content-Type": CONTENT_TYPE}, encode_exchange(answer)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    """A scripted gateway."""
    with ScriptedGateway() as running:
        yield running


@pytest.fixture
def trainer(gateway: ScriptedGateway, tmp_path: Path) -> TrainerSettings:
    """Settings with short waits."""
    timing = Timing(
        flush_interval_s=0.01, ack_interval_s=0.02, first_backoff_s=0.02, longest_backoff_s=0.1, settle_s=60
    )
    return TrainerSettings(url=gateway.url, token="tw_x", timing=timing, spool=SpoolSettings(tmp_path / "spool"))


def message(seq: int, size: int = 10) -> EncodedMessage:
    """Return a message with a body of this size."""
    entry: Entry = {
        "v": 1,
        "job": JOB,
        "attempt": 0,
        "source": "0-a",
        "seq": seq,
        "enc": "json",
        "body": b"x" * size,
    }
    return EncodedMessage(seq, entry)


Connect = Callable[..., GatewayConnection]


@pytest.fixture
def connection() -> Iterator[Connect]:
    """A function that returns a connection to a gateway; all are closed at the end."""
    with ExitStack() as stack:

        def connect(url: str, token: str | None = "tw_x") -> GatewayConnection:
            made = GatewayConnection(url, token, JOB, "0-a")
            stack.callback(made.close)
            return made

        yield connect


def test_a_request_carries_the_token_and_compressed_entries(gateway: ScriptedGateway, connection: Connect) -> None:
    """One POST has the messages and the wanted acknowledgements; its answer has both results."""
    link = connection(gateway.url)
    answer = link.exchange({"logs": [message(1), message(2)], "metrics": [message(1)]}, [])
    assert answer.seqs == {"logs": [1, 2], "metrics": [1]}
    assert link.exchange({}, ["logs"]).acks["logs"].acked == 2
    first = gateway.headers[0]
    assert (first["path"], first["Authorization"]) == (PATH, "Bearer tw_x")
    assert (first["Content-Encoding"], first["Content-Type"]) == ("zstd", CONTENT_TYPE)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_stops_with_one_sentence(
    gateway: ScriptedGateway, trainer: TrainerSettings, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """After 401 and 403 nothing more is sent, the end of the run does not wait, and the messages are kept."""
    gateway.always = lambda _body: problem(status, "the token is revoked: `trainwire token create` makes one")
    began = time.monotonic()
    with Run(JOB, "digits", settings=trainer) as run:
        for number in range(50):
            run.log(f"line {number}")
            time.sleep(0.005)
        receipt = run.finish(timeout_s=200)
    assert time.monotonic() - began < 100
    assert len(gateway.headers) == 1
    assert sum(receipt.spooled.values()) == sum(receipt.produced.values()) > 1
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == [
        f"{gateway.url} refuses the messages of job {JOB}: the token is revoked: `trainwire token create` makes "
        "one; training goes on, messages are kept and not sent"
    ]


def test_a_missing_token_is_named(gateway: ScriptedGateway, connection: Connect) -> None:
    """A refusal without TRAINWIRE_TOKEN names the variable."""
    gateway.always = lambda _body: problem(401, "this gateway requires a token")
    with pytest.raises(Refused, match="TRAINWIRE_TOKEN is not set"):
        connection(gateway.url, None).exchange({"logs": [message(1)]}, [])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_error_waits(
    gateway: ScriptedGateway, trainer: TrainerSettings, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Other errors are retried with backoff, with one warning, until everything is stored in order."""
    caplog.set_level(logging.INFO)
    gateway.replies = [problem(status, "not now")] * 3
    with Run(JOB, "digits", settings=trainer) as run:
        run.log("a")
        receipt = run.finish(timeout_s=200)
    assert receipt.unsettled == 0
    assert gateway.seqs["logs"] == [1]
    texts = [record.getMessage() for record in caplog.records if gateway.url in record.getMessage()]
    assert texts == [
        f"cannot send to {gateway.url}: not now; training goes on, messages are kept and sent later",
        f"{gateway.url} takes messages again",
    ]


def test_a_body_that_is_too_large_is_split(gateway: ScriptedGateway, connection: Connect) -> None:
    """After 413 requests become smaller, down to one message; the order stays, and nothing is left out."""
    gateway.always = lambda body: problem(413, "too large") if len(zstandard.decompress(body)) > 5000 else None
    link = connection(gateway.url)
    left = {"logs": [message(seq, 1000) for seq in range(1, 101)], "completions": [message(1, 100)]}
    while any(left.values()):
        answer = link.exchange({kind: batch for kind, batch in left.items() if batch}, [])  # type: ignore[misc]
        for kind, seqs in answer.seqs.items():
            left[kind] = [each for each in left[kind] if each.seq not in seqs]
    assert gateway.seqs == {"logs": list(range(1, 101)), "completions": [1]}
    with pytest.raises(Unavailable, match=r"a single message is too large for it.*client_max_body_size"):
        link.exchange({"logs": [message(101, 6000)]}, [])
    answer = link.exchange({"logs": [message(101, 6000)], "completions": [message(2)]}, [])
    assert answer.seqs == {"completions": [2]}, "the others do not wait for it"


def test_a_request_has_the_size_of_the_usual_limit() -> None:
    """About a MiB of messages goes into one request: of each kind at least one, small kinds first."""
    batches = {"logs": [message(seq, 100_000) for seq in range(1, 40)], "completions": [message(1)]}
    part = shares(batches, REQUEST_BYTES)  # type: ignore[arg-type]
    assert list(part) == ["completions", "logs"]
    assert 8 <= len(part["logs"]) <= 10
    assert sum(map(len, shares({"logs": batches["logs"]}, 1).values())) == 1


def test_a_connection_that_the_server_has_closed(gateway: ScriptedGateway, connection: Connect) -> None:
    """A connection that was closed while idle is no failure: the request is sent on a new one."""
    link = connection(gateway.url)
    link.exchange({"logs": [message(1)]}, [])
    assert link._http._connection is not None
    link._http._connection.sock.shutdown(socket.SHUT_RDWR)
    assert link.exchange({"logs": [message(2)]}, []).seqs == {"logs": [2]}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_https_on_the_same_host_is_followed(
    gateway: ScriptedGateway, tls: Tls, monkeypatch: pytest.MonkeyPatch, status: int, connection: Connect
) -> None:
    """The POST is repeated at the https address with its body and token, and later requests go there at once."""
    proxy = tls.in_front_of(gateway.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca))
    secure = f"https://127.0.0.1:{proxy.port}"
    gateway.replies = [(status, {"Location": f"{secure}{PATH}"}, b"")]
    link = connection(gateway.url)
    for seq in (1, 2):
        assert link.exchange({"logs": [message(seq)]}, []).seqs == {"logs": [seq]}
    assert [each["Authorization"] for each in gateway.headers] == ["Bearer tw_x"] * 3
    assert gateway.seqs == {"logs": [1, 2]}
    assert proxy.handshakes == 1


@pytest.mark.parametrize(
    ("location", "text"),
    [
        (f"http://localhost:1{PATH}", "it redirects to http://localhost:1, where the token is not sent"),
        (f"https://evil.example{PATH}", "write this address into TRAINWIRE_URL if it is right"),
        ("/login?next=%2Fjobs", "which is not the gateway"),
        ("", "which is not the gateway"),
        (f"ftp://127.0.0.1{PATH}", "where the token is not sent"),
    ],
)
def test_other_redirects_are_one_sentence(
    gateway: ScriptedGateway, location: str, text: str, connection: Connect
) -> None:
    """A redirect to another host or page is not followed: the error names it, and the remedy."""
    gateway.replies = [(307, {"Location": location}, b"")]
    with pytest.raises(Unavailable, match=text.replace("?", r"\?")):
        connection(gateway.url).exchange({"logs": [message(1)]}, [])
    assert len(gateway.headers) == 1


def test_redirects_that_never_end(gateway: ScriptedGateway, connection: Connect) -> None:
    """A circle of redirects is an error."""
    gateway.always = lambda _body: (307, {"Location": PATH}, b"")
    with pytest.raises(Unavailable, match="redirects in a circle"):
        connection(gateway.url).exchange({"logs": [message(1)]}, [])


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>sign in"), "answers with text/html"),
        ((200, {"Content-Type": CONTENT_TYPE}, b"\xc1"), "its answer cannot be read"),
        ((404, {"Content-Type": "text/html"}, b""), "HTTP status 404: is TRAINWIRE_URL the address of a gateway"),
        ((400, {"Content-Type": "text/html"}, b"<html>"), "HTTP status 400: does this port expect https://"),
        (problem(422, "a\x1b[31mb"), r"a \[31mb"),
        ((503, {"Content-Type": "application/problem+json"}, b"["), "HTTP status 503"),
    ],
)
def test_what_is_not_the_answer_of_a_gateway(
    gateway: ScriptedGateway, reply: Reply, text: str, connection: Connect
) -> None:
    """Other answers are errors that name the type or the status, without control characters."""
    gateway.replies = [reply]
    with pytest.raises(Unavailable, match=text):
        connection(gateway.url).exchange({"logs": [message(1)]}, [])


def test_certificates(
    gateway: ScriptedGateway, tls: Tls, monkeypatch: pytest.MonkeyPatch, connection: Connect
) -> None:
    """A private authority is trusted by the parameter of the address or by SSL_CERT_FILE, and no other one."""
    proxy = tls.in_front_of(gateway.url)
    url = f"https://localhost:{proxy.port}"
    with pytest.raises(Unavailable, match=UNTRUSTED.replace("(", r"\(").replace(")", r"\)")) as failed:
        connection(url).exchange({"logs": [message(1)]}, [])
    assert "with SSL_CERT_FILE" in str(failed.value)
    assert connection(f"{url}/?ssl_ca_certs={tls.ca}").exchange({"logs": [message(1)]}, []).seqs
    with pytest.raises(Unavailable, match="not trusted"):
        connection(f"{url}?ssl_ca_certs={tls.stranger}").exchange({"logs": [message(1)]}, [])
    with pytest.raises(Unavailable, match="the file of its CA is not there"):
        connection(f"{url}?ssl_ca_certs=/none.pem").exchange({"logs": [message(1)]}, [])
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca))
    assert connection(url).exchange({"logs": [message(2)]}, []).seqs
    with pytest.raises(Unavailable, match="it does not use TLS: correct its address"):
        connection(gateway.url.replace("http:", "https:")).exchange({"logs": [message(3)]}, [])
    with pytest.raises(Unavailable, match=r"reset|does not answer with HTTP|closed"):
        connection(url.replace("https:", "http:")).exchange({"logs": [message(3)]}, [])


class ForwardProxy:
    """An HTTP proxy: CONNECT tunnels, and requests with a whole address; it records their first lines."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
        self.seen.append(head.decode("latin-1"))
        method, target, _ = head.decode("latin-1").split(" ", 2)
        if "Basic bWU6cEBzcw==" not in self.seen[-1]:  # me:p@ss
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            client.close()
            return
        parts = urlsplit(target if method != "CONNECT" else f"//{target}")
        with client, socket.create_connection(("127.0.0.1", parts.port or 80)) as server:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(head)
            while True:
                for one in select.select([client, server], [], [])[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    (server if one is client else client).sendall(data)


def test_proxies(gateway: ScriptedGateway, tls: Tls, monkeypatch: pytest.MonkeyPatch, connection: Connect) -> None:
    """HTTPS_PROXY and HTTP_PROXY with a password are used, and not for hosts of NO_PROXY; refusals are named."""
    secure = f"https://localhost:{tls.in_front_of(gateway.url).port}/?ssl_ca_certs={tls.ca}"
    with ForwardProxy() as proxy:
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        for seq, url in enumerate((secure, gateway.url), 1):
            link = connection(url)
            assert link.exchange({"logs": [message(seq)]}, []).seqs == {"logs": [seq]}
        tunnel, plain = proxy.seen
        assert tunnel.startswith(f"CONNECT {urlsplit(secure).netloc} ")
        assert "tw_x" not in tunnel
        assert plain.startswith(f"POST {gateway.url}{PATH} ")
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(Unavailable, match="407"):
            connection(secure).exchange({"logs": [message(3)]}, [])
        monkeypatch.setenv("NO_PROXY", "localhost")
        link = connection(secure)
        assert link.exchange({"logs": [message(3)]}, []).seqs
        monkeypatch.setenv("HTTP_PROXY", "socks5://user:secret@host:1")
        with pytest.raises(Unavailable, match=r"HTTP_PROXY=socks5://host is not a proxy") as failed:
            connection(gateway.url).exchange({"logs": [message(3)]}, [])
        assert "secret" not in str(failed.value)


def test_a_strict_run(gateway: ScriptedGateway, trainer: TrainerSettings) -> None:
    """It raises at the start where the gateway refuses or does not answer, and claims its rank else."""
    gateway.replies = [problem(401, "the token is revoked")]
    with pytest.raises(RedisAway, match="the token is revoked"):
        Run(JOB, settings=trainer.strictly(True))
    gateway.replies = [problem(503, "Redis is unavailable")]
    with pytest.raises(RedisAway, match=r"Redis is unavailable.*TRAINWIRE_URL"):
        Run(JOB, settings=trainer.strictly(True))


def launched(gateway: ScriptedGateway, tmp_path: Path, script: str) -> str:
    """Run a script under the launcher, as job 42 named digits; return its stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "TRAINWIRE_URL": gateway.url,
        "TRAINWIRE_TOKEN": "tw_x",
        "TRAINWIRE_SPOOL_DIR": str(tmp_path / "spool"),
        "TRAINWIRE_SETTLE_S": "0.1",
    }
    ours = (sys.executable, "-m", "trainwire.ingest", "--job-id", str(JOB), "--name", "digits")
    command = [*ours, "--", sys.executable, "-c", f"from trainwire import Run; {script}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=True)
    return done.stderr


@pytest.mark.parametrize("script", ["Run()", "Run(name='mnist')"])
def test_a_run_has_the_name_of_its_launcher(gateway: ScriptedGateway, tmp_path: Path, script: str) -> None:
    """So a token for other names is refused for both, and never for one of them."""
    launched(gateway, tmp_path, f"{script}.finish(timeout_s=60)")
    sources = {request["source"] for request in gateway.requests}
    bodies = [
        decode_body("metrics", open_envelope({key.encode(): _bytes(value) for key, value in entry.items()}))
        for request in gateway.requests
        for entry in request.get("entries", {}).get("metrics", [])
    ]
    assert len(sources) == 2
    named = [body.name for body in bodies if isinstance(body, Metrics) and body.name]
    assert named == ["digits", "digits"]


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.mark.parametrize(("script", "count"), [("Run()", 1), ("Run(name='mnist')", 1), ("Run(job_id=7)", 2)])
def test_one_refusal_is_logged_once(gateway: ScriptedGateway, tmp_path: Path, script: str, count: int) -> None:
    """The launcher logs it for the runs of its job and name; others may be refused for reasons of their own."""
    gateway.always = lambda _: problem(403, "not for you")
    errors = launched(gateway, tmp_path, f"{script}.finish(timeout_s=60)")
    assert errors.count("refuses the messages of job") == count
    assert errors.count("could not be sent") == count
