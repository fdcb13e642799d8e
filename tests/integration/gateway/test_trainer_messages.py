"""Messages over HTTPS at the gateway: what a token may send for, and bodies that are hostile or wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
import pytest
import requests
import zstandard
from sqlalchemy import make_url

from tests.factories import NOW_NS, completion, drain, logs, metrics, one, rows
from tests.gateway_server import GatewayServer, gateway_settings
from tests.tcp_proxy import TcpProxy
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.keys import (
    DEFAULT_SHARDS,
    HOLD_KEY,
    JOB_DELETED_FIELD,
    KINDS,
    acks_key,
    alive_field,
    alive_key,
    behind_key,
    claim_key,
    stream_key,
)
from trainwire.schemas.tables import training_jobs, training_logs
from trainwire.schemas.wire.entries import Entry, encode_entry
from trainwire.schemas.wire.exchange import CONTENT_TYPE, MAX_ENTRIES, ExchangeAnswer, decode_answer
from trainwire.schemas.wire.heartbeats import Heartbeat, RankClaim
from trainwire.schemas.wire.messages import KIND_OF_BODY, Body, Message, Metrics
from trainwire.stores.postgres.deletion import forget_acks
from trainwire.workers.resources import Resources

JOB: Final = 42
SOURCE: Final = "0-honest"
CLAIMANT: Final = hashlib.sha256(SOURCE.encode()).hexdigest()
encode: Final = msgspec.msgpack.Encoder().encode
MakeToken: TypeAlias = Callable[..., dict[str, str]]


def entry(message: Body, seq: int = 1, job: int = JOB, source: str = SOURCE, **changes: Any) -> Entry:
    """Return an entry as the SDK makes it, with changed fields."""
    made = encode_entry(Message(KIND_OF_BODY[type(message)], job, 1, source, seq, message))
    return {**made, **changes}


def named(name: str, seq: int = 1, **changes: Any) -> Entry:
    """Return the entry of a metrics message that names the job."""
    return entry(Metrics(ts=NOW_NS, name=name), seq, **changes)


def request(source: str = SOURCE, **fields: Any) -> bytes:
    """Return a compressed request."""
    return zstandard.compress(encode({"source": source, **fields}))


def post(
    server: GatewayServer,
    body: bytes,
    headers: Mapping[str, str],
    *,
    job: int = JOB,
    content_type: str = CONTENT_TYPE,
    encoding: str = "zstd",
) -> requests.Response:
    """Send a body."""
    formats = {"Content-Type": content_type, "Content-Encoding": encoding}
    return server.request("POST", f"/jobs/{job}/messages", data=body, headers={**formats, **headers})


def answer(response: requests.Response) -> ExchangeAnswer:
    """Return the answer in a response."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == CONTENT_TYPE
    return decode_answer(response.content)


def appended(resources: Resources) -> int:
    """Return the number of entries in all streams."""
    return sum(resources.redis.xlen(stream_key(kind, shard)) for kind in KINDS for shard in range(DEFAULT_SHARDS))


def refused(response: requests.Response, status: int, *parts: str) -> None:
    """Assert that a response is a problem with these parts of a text."""
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    for part in parts:
        assert part in detail


@pytest.fixture
def token(guarded: GatewayServer, resources: Resources) -> MakeToken:
    """A function that makes the header of a trainer's token, for a gateway that has no names of earlier tests."""
    guarded.app.state.resources.job_names._cached.clear()

    def make(job_id: int | None = None, job_names: str | None = None) -> dict[str, str]:
        with resources.engine.begin() as connection:
            made = create_token(connection, "test", "trainer", job_id, job_names=job_names)[1]
        return {"Authorization": f"Bearer {made}"}

    return make


def test_messages_are_appended_and_acknowledged(
    guarded: GatewayServer, resources: Resources, token: MakeToken
) -> None:
    """Entries go to the streams; once they are stored the next answer has their acknowledgements."""
    headers = token(JOB)
    entries = {"logs": [entry(logs("a")), entry(logs("b"), 2)], "metrics": [named("digits")]}
    found = answer(post(guarded, request(entries=entries, acks=["logs"]), headers))
    assert (found.taken, found.refusal, found.hold) == ({"logs": 2, "metrics": 1}, None, False)
    assert found.acks == {"logs": (None, None, None)}
    drain(resources, "logs", JOB)
    assert answer(post(guarded, request(acks=["logs", "metrics"]), headers)).acks["logs"] == (b"2", None, None)


def test_a_request_that_is_repeated_is_stored_once(
    guarded: GatewayServer, resources: Resources, token: MakeToken
) -> None:
    """A trainer that has not received the answer sends the same entries again: the workers store them once."""
    body = request(entries={"logs": [entry(logs("a")), entry(logs("b"), 2)]})
    for _ in range(3):
        answer(post(guarded, body, token(JOB)))
    assert appended(resources) == 6
    drain(resources, "logs", JOB)
    assert rows(resources.engine, training_logs, "content") == ["a", "b"]


def test_a_heartbeat_and_a_claim(guarded: GatewayServer, resources: Resources, token: MakeToken) -> None:
    """They are written with the time of Redis, no process takes the claim of another, and both are withdrawn."""
    headers = token(JOB)
    beat = Heartbeat(job=JOB, source=SOURCE, at=0)
    claim = RankClaim(holder=Heartbeat(job=JOB, source=CLAIMANT, at=0, attempt=1), ttl_ms=60_000)
    found = answer(post(guarded, request(heartbeat=beat, claim=claim), headers))
    assert (found.is_alive, found.claim) == (True, b"")
    key = claim_key(JOB, 1, 0, "")
    assert resources.redis.hexists(alive_key(JOB % DEFAULT_SHARDS), alive_field(JOB, SOURCE))
    mine = resources.redis.get(key)
    other = "1-other"
    digest = hashlib.sha256(other.encode()).hexdigest()
    rival = RankClaim(holder=Heartbeat(job=JOB, source=digest, at=0, attempt=1), ttl_ms=60_000)
    assert answer(post(guarded, request(other, claim=rival), headers)).claim == mine
    assert resources.redis.get(key) == mine
    assert digest.encode() in (
        answer(post(guarded, request(other, claim=rival, by_force=True), headers)).claim or b""
    )
    answer(post(guarded, request(other, claim=rival, has_ended=True), headers))
    answer(post(guarded, request(claim=claim, has_ended=True), headers))
    assert not resources.redis.exists(alive_key(JOB % DEFAULT_SHARDS))


def test_joined_messages_and_the_wait(guarded: GatewayServer, resources: Resources, token: MakeToken) -> None:
    """An entry of several messages is appended as it is; the answer has how far the workers are behind."""
    resources.redis.set(behind_key("metrics", JOB % DEFAULT_SHARDS), 2500)
    body = request(entries={"logs": [entry(logs("a", "b"), seq=2, v=2, parts="1,1")]}, acks=["logs"])
    found = answer(post(guarded, body, token(JOB)))
    assert (found.taken, found.behind_ms) == ({"logs": 1}, 2500)
    drain(resources, "logs", JOB)
    assert rows(resources.engine, training_logs, "content") == ["a", "b"]


def test_a_full_redis_and_a_deleted_job(guarded: GatewayServer, resources: Resources, token: MakeToken) -> None:
    """While trainers must hold back nothing is appended; of a deleted job everything counts as taken."""
    body = request(entries={"logs": [entry(logs("a"))]}, acks=["logs"])
    resources.redis.set(HOLD_KEY, 1)
    found = answer(post(guarded, body, token(JOB)))
    assert (found.hold, found.taken) == (True, {})
    resources.redis.delete(HOLD_KEY)
    resources.redis.hset(acks_key(JOB), JOB_DELETED_FIELD, 1)
    for headers in (token(JOB), token(job_names="digits*")):
        found = answer(post(guarded, body, headers))
        assert (found.is_job_deleted, found.taken) == (True, {"logs": 1})
    assert appended(resources) == 0
    forget_acks(resources.redis, JOB)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (
            {"entries": {"logs": [entry(logs("a")), entry(logs("b"), job=43)]}},
            ("entries.logs.1.job '43'", "must be 42"),
        ),
        ({"entries": {"logs": [entry(logs("a"), source="0-victim")]}}, ("0-victim", "the source of the request")),
        (
            {"entries": {"completions": [entry(completion("ended", of="0-victim"))]}},
            ("entries.completions.0.of '0-victim'", "0-victim~end-"),
        ),
        ({"source": "callback-1", "entries": {}}, ("callback-1", "begin with")),
        ({"source": "a\x00b"}, ("NUL",)),
        ({"heartbeat": {"job": 43, "source": SOURCE, "at": 0}}, ("job 43",)),
        ({"heartbeat": {"job": JOB, "source": "0-victim", "at": 0}}, ("0-victim",)),
        ({"claim": {"holder": {"job": 43, "source": CLAIMANT, "at": 0}, "ttl_ms": 1}}, ("job 43",)),
        ({"claim": {"holder": {"job": JOB, "source": "0-victim", "at": 0}, "ttl_ms": 1}}, ("0-victim",)),
        ({"claim": {"holder": {"job": JOB, "source": CLAIMANT, "at": 0}, "ttl_ms": 10**9}}, ("600000",)),
        ({"has_ended": True}, ("is required",)),
        ({"entries": {"logs": [entry(logs("a"), v=3)]}}, ("entries.logs.0.v '3'",)),
        ({"entries": {"logs": [entry(logs("a"), v=2)]}}, ("entries.logs.0.v '2'", "with parts")),
        ({"entries": {"logs": [entry(logs("a", "b"), parts="1,1")]}}, ("entries.logs.0.v '1'",)),
        ({"entries": {"logs": [entry(logs("a"), enc="gzip")]}}, ("'gzip'", "msgpack+zstd")),
        ({"entries": {"logs": [entry(logs("a"), enc="lost", body=b"\xff")]}}, ("body of a loss",)),
        ({"entries": {"logs": [entry(logs("a"), seq=0)]}}, ("seq",)),
        ({"entries": {"logs": [{"v": 1}]}}, ("job",)),
        ({"entries": {"alive": [entry(logs("a"))]}}, ("alive",)),
        ({"entries": {"logs:ordered": [entry(logs("a"))]}}, ("logs:ordered",)),
        ({"entries": {"logs": [entry(logs("a"), body="text")]}}, ("body",)),
        ({"entries": {"completions": [entry(completion(), body=b"\xc1")]}}, ("not msgpack",)),
        ({"entries": {"logs": [{}] * (MAX_ENTRIES + 1)}}, ("10000",)),
        ({"acks": ["logs"] * 5}, ("4",)),
    ],
)
def test_what_is_not_of_the_job_and_the_source(
    guarded: GatewayServer, resources: Resources, token: MakeToken, fields: dict[str, Any], parts: tuple[str, ...]
) -> None:
    """A request with anything for another job or source, or invalid, is refused as a whole, with the value."""
    before = entry(completion("ended", of="0-mine"), source="0-mine~end-1")
    assert answer(post(guarded, request("0-mine~end-1", entries={"completions": [before]}), token(JOB))).taken
    refused(post(guarded, request(**fields), token(JOB)), 422, *parts)
    assert appended(resources) == 1
    assert not resources.redis.exists(alive_key(JOB % DEFAULT_SHARDS))


def test_bodies_that_are_no_requests(guarded: GatewayServer, resources: Resources, token: MakeToken) -> None:
    """Bombs, truncated and oversized bodies, and other formats are a 4xx that names the reason."""
    headers = token(JOB)
    honest = request(entries={"logs": [entry(logs(os.urandom(50_000).hex()))]})
    bomb = zstandard.compress(bytes(512 * 1024 * 1024))
    refused(post(guarded, bomb, headers), 413, "8388608 bytes (GATEWAY_MAX_BODY_BYTES) when decompressed")
    refused(post(guarded, bytes(9 * 1024 * 1024), headers), 413, "GATEWAY_MAX_BODY_BYTES")
    refused(post(guarded, honest[: len(honest) // 2], headers), 400, "not msgpack")
    refused(post(guarded, b"", headers), 400, "not msgpack")
    refused(post(guarded, b"nonsense", headers), 400, "not zstd")
    nested = b"\x82\xa6source\xa1a\xa1x" + b"\x91" * 100_000
    refused(post(guarded, zstandard.compress(nested), headers), 400, "not msgpack")
    huge = b"\x82\xa6source\xa1a\xa4acks\xdd\xff\xff\xff\xff"
    refused(post(guarded, zstandard.compress(huge), headers), 422, "4")
    refused(post(guarded, honest, headers, content_type="application/json"), 415, "application/json")
    refused(post(guarded, honest, headers, encoding="br"), 415, "'br'", "zstd")
    refused(post(guarded, encode(["source"]), headers, encoding=""), 422, "array")
    filler = zstandard.compress(encode({"points": [], "x": bytes(20 * 1024 * 1024)}))
    fillers = [entry(metrics(loss=1.0), seq, body=filler, enc="msgpack+zstd") for seq in range(1, 500)]
    names = token(job_names="digits*")
    refused(post(guarded, request(entries={"metrics": fillers}), names), 413, "67108864 bytes when decompressed")
    assert appended(resources) == 0
    assert answer(post(guarded, honest, headers)).taken == {"logs": 1}
    plain = zstandard.decompress(honest)
    assert answer(post(guarded, plain, headers, encoding="identity")).taken == {"logs": 1}


def test_tokens_for_other_things(guarded: GatewayServer, resources: Resources, token: MakeToken) -> None:
    """No token, a viewer's and one for another job are refused, with the remedy."""
    body = request(entries={"logs": [entry(logs("a"))]})
    refused(post(guarded, body, {}), 401, "trainwire token create")
    with resources.engine.begin() as connection:
        viewer = create_token(connection, "test", "viewer")[1]
    refused(post(guarded, body, {"Authorization": f"Bearer {viewer}"}), 403, "use a token with the role trainer")
    refused(post(guarded, body, token(7)), 403, "for job 7 only")
    assert appended(resources) == 0


def test_a_token_for_names_sends_for_these_names_only(
    guarded: GatewayServer, resources: Resources, token: MakeToken
) -> None:
    """A new job must be named first; then it is the token's, and no message may give it another name."""
    digits = token(job_names="digits*")
    body = request(entries={"logs": [entry(logs("a"))]})
    refused(post(guarded, body, digits), 409, "digits*", "job 42 has no name yet", "Run(name=")
    refused(post(guarded, request(entries={"metrics": [named("mnist")]}), digits), 403, "'mnist'", "digits*")
    assert appended(resources) == 0
    first = request(entries={"logs": [entry(logs("a"))], "metrics": [named("digits-1")]})
    assert answer(post(guarded, first, digits)).taken == {"logs": 1, "metrics": 1}
    assert answer(post(guarded, body, digits)).taken == {"logs": 1}, "before anything is stored"
    refused(post(guarded, body, token(job_names="mnist*")), 403, "job 42 belongs to 'digits-1'", "mnist*")
    renamed = request(entries={"metrics": [entry(metrics(loss=1.0), 2), named("mnist", 3)]})
    refused(post(guarded, renamed, digits), 403, "names job 42 'mnist'")
    hidden = {"points": [], "name": "mnist"}
    disguises: list[dict[str, Any]] = [
        {"enc": "json", "body": msgspec.json.encode(hidden)},
        {"enc": "msgpack+zstd", "body": zstandard.compress(encode(hidden))},
        {"enc": "msgpack", "body": b"\x83\xa4name\xa6digits\xa6points\x90\xa4name\xa5mnist"},
    ]
    for changes in disguises:
        found = post(guarded, request(entries={"metrics": [entry(metrics(loss=1.0), 4, **changes)]}), digits)
        refused(found, 403, "'mnist'")
    broken = entry(metrics(loss=1.0), 4, body=b"\x81\xa4name\xa6mnist\xff")
    refused(post(guarded, request(entries={"metrics": [broken]}), digits), 422, "not msgpack")


def test_a_job_of_another_name_is_refused(guarded: GatewayServer, resources: Resources, token: MakeToken) -> None:
    """A number that belongs to another name, or to a run without one, is refused before and after it is stored."""
    digits = token(job_names="digits*")
    victim = request(entries={"metrics": [named("victim")]})
    assert answer(post(guarded, victim, token(JOB))).taken
    drain(resources, "metrics", JOB)
    attack = request("0-mine", entries={"metrics": [named("digits", source="0-mine")]})
    refused(post(guarded, attack, digits), 403, "job 42 belongs to 'victim'", "digits*")
    refused(post(guarded, request(acks=["logs"]), digits), 403, "job 42 belongs to 'victim'")
    nameless = request(entries={"logs": [entry(logs("a"), job=46)]})
    assert answer(post(guarded, nameless, token(46), job=46)).taken
    drain(resources, "logs", 46)
    named_now = request(entries={"metrics": [named("digits", job=46)]})
    refused(post(guarded, named_now, digits, job=46), 403, "job 46 belongs to a run without a name")
    assert one(resources.engine, training_jobs, id=JOB)["name"] == "victim"


def test_callbacks_with_a_token_for_names(guarded: GatewayServer, resources: Resources, token: MakeToken) -> None:
    """Callbacks follow the same rule: the name of the job, and none other."""
    digits = token(job_names="digits*")

    def callback(kind: str, document: Mapping[str, Any], job: int = 50) -> requests.Response:
        return guarded.request("POST", f"/jobs/{job}/callback/{kind}", json=document, headers=digits)

    refused(callback("logs", {"lines": ["a"]}), 409, "no name yet")
    refused(callback("progress", {"name": "mnist", "status": "running"}), 403, "'mnist'")
    assert callback("progress", {"name": "digits", "status": "running"}).status_code == 202
    assert callback("logs", {"lines": ["a"]}).status_code == 202
    assert appended(resources) == 2
    refused(guarded.request("GET", "/jobs", headers=digits), 403, "viewer")


def test_known_names_outlast_postgres(database_url: str, redis_url: str, token: MakeToken) -> None:
    """While Postgres is away a token for names sends for jobs that it has sent for; for others it must wait."""
    digits = token(job_names="digits*")
    url = make_url(database_url)
    with TcpProxy(f"http://{url.host}:{url.port}") as network:
        proxied = url.set(host="127.0.0.1", port=int(network.url.rpartition(":")[2]))
        settings = gateway_settings(proxied.render_as_string(hide_password=False), redis_url, gateway_auth="on")
        with GatewayServer(settings) as server:
            first = request(entries={"metrics": [named("digits")]})
            assert answer(post(server, first, digits)).taken
            names = server.app.state.resources.job_names
            network.cut()
            names._clock = lambda now=names._clock: now() + 60
            assert answer(post(server, request(entries={"logs": [entry(logs("a"))]}), digits)).taken
            other = request(entries={"metrics": [named("digits", job=44)]})
            assert post(server, other, digits, job=44).status_code == 503
