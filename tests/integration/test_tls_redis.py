"""TLS to Redis: certificates are verified by default, by kombu too, and a wrong CA does not stop a trainer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from kombu import Connection, Producer
from kombu.exceptions import OperationalError

from tests.integration.cli.conftest import Trainwire, alone, trainwire  # noqa: F401 - fixtures
from tests.processes import ROOT
from tests.tcp_proxy import TcpProxy
from tests.tls_servers import UNTRUSTED, Tls, over, settings_of
from trainwire import Run, TrainerSettings
from trainwire.ingest.sending.recovery import send_leftovers
from trainwire.ingest.sending.transports import redis_connection as link
from trainwire.ingest.sending.transports.redis_connection import RedisConnection
from trainwire.ingest.servers import outage
from trainwire.ingest.settings.setting_groups import SpoolSettings, Timing
from trainwire.schemas.keys import INGEST_QUEUE, stream_key
from trainwire.schemas.streams.broker import broker_at
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.stores.postgres.connections import open_redis
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources

JOB = 42
FORKING = f"""
import os, time
from trainwire import Run
with Run({JOB}) as run:
    run.log("before")
    while not run._session.outbox.sent_kinds():
        time.sleep(0.02)  # until the connection is there
    for number in range(3):
        if os.fork() == 0:
            run.log(f"child {{number}}")
            run.finish()
            os._exit(0)
        os.wait()
        run.log(f"after {{number}}")
"""


def error_of(resources: Resources, redis_url: str) -> str:
    """Return the worker's error for a Redis that it cannot use."""
    client = open_redis(settings_of(resources, redis_url=redis_url))
    with pytest.raises(Unavailable) as caught, client, redis_errors():
        client.ping()
    return str(caught.value)


def test_redis_is_trusted_by_its_ca_only(redis_over: Callable[..., str], resources: Resources, tls: Tls) -> None:
    """With its CA it answers; with none or another one the error has address, reason and remedy."""
    with open_redis(settings_of(resources, redis_url=redis_over(ssl_ca_certs=tls.ca))) as client:
        assert client.ping()
    for url in (redis_over(), redis_over(ssl_ca_certs=tls.stranger)):
        message = error_of(resources, url)
        port = url.partition("127.0.0.1:")[2].partition("/")[0]
        assert message == (
            f"Redis: Error 1 connecting to 127.0.0.1:{port}: {UNTRUSTED} in REDIS_URL, "
            "?ssl_ca_certs=/path/to/ca.pem"
        )


def test_a_certificate_that_no_ca_can_help(resources: Resources, tls: Tls, redis_url: str) -> None:
    """A certificate for another host, or an expired one, is refused with a remedy of its own."""
    elsewhere = tls.in_front_of(redis_url, "redis.example")
    message = error_of(resources, over(elsewhere, redis_url, "rediss", ssl_ca_certs=tls.ca))
    assert message.endswith(": use the address that it was made for")
    expired = tls.in_front_of(redis_url, "127.0.0.1", days=-1)
    message = error_of(resources, over(expired, redis_url, "rediss", ssl_ca_certs=tls.ca))
    assert message.endswith("(certificate has expired): renew it")


def publish_over(url: str) -> None:
    """Publish a message through Celery's transport."""
    broker = broker_at(url)
    with Connection(broker.url, ssl=broker.ssl or False) as connection, connection.channel() as channel:
        Producer(channel).publish({}, exchange="", routing_key=INGEST_QUEUE)


def test_kombu_verifies_as_redis_py_does(redis_over: Callable[..., str], tls: Tls, client: redis.Redis) -> None:
    """An order is published only to a trusted server; kombu's default would trust any."""
    for url in (redis_over(), redis_over(ssl_ca_certs=tls.stranger)):
        broker = broker_at(url)
        with (
            pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"),
            Connection(broker.url, ssl=broker.ssl or False) as connection,
        ):
            connection.ensure_connection(max_retries=1)
    for fine in (redis_over(ssl_ca_certs=tls.ca, health_check_interval=5), redis_over(ssl_cert_reqs="none")):
        publish_over(fine)
    assert client.llen(INGEST_QUEUE) == 2


def test_a_trainer_with_a_wrong_ca_trains_on(
    redis_over: Callable[..., str],
    tls: Tls,
    client: redis.Redis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It logs the error once; all is in the spool, and is sent from there when the CA is right."""
    timing = Timing(first_backoff_s=0.02, longest_backoff_s=0.1, settle_s=0.1, away_s=0.2)
    for number, wrong in enumerate(
        [redis_over(ssl_ca_certs=tls.stranger), redis_over(ssl_ca_certs=tmp_path / "no")]
    ):
        spool = SpoolSettings(tmp_path / f"spool{number}")
        run = Run(JOB, settings=TrainerSettings(redis_url=wrong, timing=timing, spool=spool))
        run.log("sent later")
        receipt = run.finish()
        assert receipt.spooled == receipt.produced
        assert receipt.produced["logs"] == 1
    untrusted, missing = [record.getMessage() for record in caplog.records if "cannot send" in record.getMessage()]
    assert f"{UNTRUSTED} in REDIS_URL, ?ssl_ca_certs=/path/to/ca.pem; training goes on" in untrusted
    assert "the file of its CA is not there: name it in REDIS_URL, ?ssl_ca_certs=/path/to/ca.pem" in missing
    right = redis_over(ssl_ca_certs=tls.ca)
    for number in range(2):
        (left,) = send_leftovers(tmp_path / f"spool{number}", right, timing, 60)
        assert not any(left.receipt.unsent.values())
    entries: Any = client.xrange(stream_key("logs", 2))  # some twice: no worker acknowledges them
    assert len({(fields[b"source"], fields[b"seq"]) for _, fields in entries}) == 2


def test_forked_children_and_their_parent_over_tls(
    redis_over: Callable[..., str], tls: Tls, client: redis.Redis, tmp_path: Path
) -> None:
    """A child does not use its parent's connection: lines of both, from before and after the fork, arrive."""
    env = os.environ | {"REDIS_URL": redis_over(ssl_ca_certs=tls.ca), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    page: list[Any] = client.xrange(stream_key("logs", 2)) or []
    envelopes = [open_envelope(fields) for _, fields in page]
    once: dict[Any, Any] = {(one.source, one.seq): decode_body("logs", one) for one in envelopes}  # may be resent
    sent = sorted(line for body in once.values() for line in body.lines)
    assert sent == ["after 0", "after 1", "after 2", "before", "child 0", "child 1", "child 2"]


def test_a_server_that_asks_for_a_certificate_of_ours(tls: Tls, resources: Resources, redis_url: str) -> None:
    """redis-py and kombu present ssl_certfile and ssl_keyfile; without them the server refuses the connection."""
    proxy = tls.in_front_of(redis_url, "127.0.0.1", asks_clients=True)
    own = tls.authority.certificate("worker")
    shown = over(proxy, redis_url, "rediss", ssl_ca_certs=tls.ca, ssl_certfile=own, ssl_keyfile=own)
    with open_redis(settings_of(resources, redis_url=shown)) as client:
        assert client.ping()
    publish_over(shown)
    assert resources.redis.llen(INGEST_QUEUE) == 1
    assert error_of(resources, over(proxy, redis_url, "rediss", ssl_ca_certs=tls.ca))  # closed, or an alert


@pytest.mark.parametrize("kind", ["redis", "redis+cluster"])
def test_a_trainer_without_tls_at_a_port_with_tls(tls: Tls, redis_url: str, kind: str) -> None:
    """The error for redis:// at a port with TLS names the cause, of a cluster too."""
    plain = over(tls.in_front_of(redis_url), redis_url, kind).removesuffix("/0")
    secure = kind.replace("redis", "rediss")
    with pytest.raises(
        outage.Unavailable, match=f"it expects TLS: its address begins with {re.escape(secure)}://"
    ):
        RedisConnection(plain, JOB, "0-test").read_reports(["logs"])


@pytest.mark.parametrize("kind", ["rediss", "rediss+cluster"])
def test_a_trainer_with_tls_at_a_port_without_tls(
    redis_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for rediss:// at a port without TLS names the cause."""
    monkeypatch.setattr(link, "SOCKET_TIMEOUT_S", 3.0)
    secure = redis_url.replace("redis", kind, 1).rpartition("/")[0]
    with pytest.raises(outage.Unavailable, match=r"it does not (answer the TLS handshake|use TLS): correct"):
        RedisConnection(secure, JOB, "0-test").read_reports(["logs"])


def test_a_cluster_whose_certificate_is_not_trusted(tls: Tls, redis_url: str) -> None:
    """A trainer's error names the setting and the parameter, with no CA and with another one."""
    proxy = tls.in_front_of(redis_url)
    remedy = f"{UNTRUSTED} in STREAMS_URL, ?ssl_ca_certs=/path/to/ca.pem"
    for query in ("", f"?ssl_ca_certs={tls.stranger}"):
        with pytest.raises(outage.Unavailable, match=re.escape(remedy)):
            RedisConnection(f"rediss+cluster://127.0.0.1:{proxy.port}{query}", JOB, "0-test").read_reports(
                ["logs"]
            )


def test_a_closed_connection_is_not_reported_as_tls(redis_url: str) -> None:
    """A server that closes the connection at a TLS handshake may have other reasons than TLS."""
    with TcpProxy(urlsplit(redis_url).netloc.rpartition("@")[2]) as proxy:
        proxy.cut()
        with pytest.raises(outage.Unavailable) as caught:
            RedisConnection(proxy.url.replace("http", "redis"), JOB, "0-test").read_reports(["logs"])
    assert "TLS" not in str(caught.value)


def test_workers_and_doctor_without_tls_at_a_port_with_tls(
    tls: Tls,
    resources: Resources,
    trainwire: Trainwire,  # noqa: F811
    alone: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    """A worker exits at its start with that error, and the doctor reports it."""
    redis_url = resources.settings.redis_url.get_secret_value()
    named = "Connection closed by server: it expects TLS: its address begins with rediss://, not with redis://"
    alone.setenv("DATABASE_URL", resources.settings.database_url.get_secret_value())
    alone.setenv("REDIS_URL", over(tls.in_front_of(redis_url), redis_url, "redis"))
    alone.setenv("LOKI_ENABLED", "false")
    assert named in trainwire("doctor", "--json").out
    command = [sys.executable, "-m", "trainwire.workers", "worker"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, named in done.stderr) == (78, True)
