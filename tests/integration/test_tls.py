"""TLS to every store: certificates are verified unsaid, a CA is named, and a wrong one costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection
from kombu.exceptions import OperationalError
from sqlalchemy import text

from ingest import Run, TrainerSettings
from ingest.leftovers import send_leftovers
from ingest.object_store import ObjectStore
from ingest.patience import StoreUnavailable
from ingest.settings import SpoolSettings, Timing
from schemas.bells import Bells
from schemas.broker import broker_at
from schemas.checkpoint_keys import S3Uri
from schemas.messages import decode_body, open_envelope
from schemas.routes import INGEST_QUEUE, stream_key
from stores.connections import open_engine, open_redis
from stores.loki_http import LokiUnavailable, loki_http
from stores.mlflow_http import MlflowApi, MlflowUnavailable, plain_send
from stores.s3 import StoreAway, open_s3
from stores.settings import WrongSettings
from tests.factories import logs
from tests.gateway_server import GatewayServer, gateway_settings
from tests.integration.conftest import Bucket
from tests.integration.gateway.feed_clients import GatewayAddress, Trainer, WebSocketClient
from tests.integration.trainwire.conftest import Trainwire, alone, trainwire  # noqa: F401 - fixtures
from tests.mlflow_server import MlflowServer
from tests.processes import ROOT
from tests.tls_servers import Tls, over
from tests.twins.loki import LokiTwin
from workers.errors import Unavailable
from workers.resources import Resources
from workers.settings import Settings, load_settings
from workers.sinks.mlflow_http import mlflow_api
from workers.store import postgres_errors
from workers.streams import redis_errors

UNTRUSTED = "its certificate is not trusted (unable to get local issuer certificate): name the file of its CA"
JOB = 42
FORKING = f"""
import os, time
from ingest import Run
with Run({JOB}) as run:
    run.log("before")
    time.sleep(1)  # the connection is there
    for number in range(3):
        if os.fork() == 0:
            run.log(f"child {{number}}")
            run.finish()
            os._exit(0)
        os.wait()
        run.log(f"after {{number}}")
"""


@pytest.fixture
def redis_over(tls: Tls, redis_url: str, client: redis.Redis) -> Callable[..., str]:  # noqa: ARG001 - empties it
    """Give a function that returns the address of Redis over TLS with these parameters."""
    proxy = tls.in_front_of(redis_url)
    return lambda **query: over(proxy, redis_url, "rediss", **query)


def settings_of(resources: Resources, **others: Any) -> Settings:
    """Return the settings of workers on the test servers, some of them others."""
    urls = {name: getattr(resources.settings, name).get_secret_value() for name in ("database_url", "redis_url")}
    return load_settings(**urls | others)


def trouble_with(resources: Resources, redis_url: str) -> str:
    """Return what a worker says of a Redis that it cannot use."""
    client = open_redis(settings_of(resources, redis_url=redis_url))
    with pytest.raises(Unavailable) as caught, client, redis_errors():
        client.ping()
    return str(caught.value)


def test_redis_is_trusted_by_its_ca_only(redis_over: Callable[..., str], resources: Resources, tls: Tls) -> None:
    """With its CA it answers; with none or another one the sentence has address, reason and remedy."""
    with open_redis(settings_of(resources, redis_url=redis_over(ssl_ca_certs=tls.ca))) as client:
        assert client.ping()
    for url in (redis_over(), redis_over(ssl_ca_certs=tls.stranger)):
        said = trouble_with(resources, url)
        port = url.partition("127.0.0.1:")[2].partition("/")[0]
        assert said == (
            f"Redis: Error 1 connecting to 127.0.0.1:{port}: {UNTRUSTED} in REDIS_URL, "
            "?ssl_ca_certs=/path/to/ca.pem"
        )


def test_a_certificate_that_no_ca_can_help(resources: Resources, tls: Tls, redis_url: str) -> None:
    """One for another host, or of yesterday, is refused with a remedy of its own."""
    elsewhere = tls.in_front_of(redis_url, "redis.example")
    said = trouble_with(resources, over(elsewhere, redis_url, "rediss", ssl_ca_certs=tls.ca))
    assert said.endswith(": use the address that it was made for")
    expired = tls.in_front_of(redis_url, "127.0.0.1", days=-1)
    said = trouble_with(resources, over(expired, redis_url, "rediss", ssl_ca_certs=tls.ca))
    assert said.endswith("(certificate has expired): renew it")


def test_kombu_verifies_as_redis_py_does(redis_over: Callable[..., str], tls: Tls, client: redis.Redis) -> None:
    """An order goes through a server that is trusted only; left alone, kombu would trust everybody."""
    for url in (redis_over(), redis_over(ssl_ca_certs=tls.stranger)):
        broker = broker_at(url)
        with (
            pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"),
            Connection(broker.url, ssl=broker.ssl or False) as connection,
        ):
            connection.ensure_connection(max_retries=1)
        Bells(url).ring("logs", 0)
        assert client.llen(INGEST_QUEUE) == 0
    for fine in (redis_over(ssl_ca_certs=tls.ca, health_check_interval=5), redis_over(ssl_cert_reqs="none")):
        bells = Bells(fine)
        bells.ring("logs", 0)
        bells.close()
    assert client.llen(INGEST_QUEUE) == 2


def test_a_trainer_with_a_wrong_ca_trains_on(
    redis_over: Callable[..., str],
    tls: Tls,
    client: redis.Redis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says once what is wrong; all is in the spool, from where it goes when the CA is right."""
    timing = Timing(first_backoff_s=0.02, longest_backoff_s=0.1, settle_s=0.1, away_s=0.2)
    for number, wrong in enumerate(
        [redis_over(ssl_ca_certs=tls.stranger), redis_over(ssl_ca_certs=tmp_path / "no")]
    ):
        spool = SpoolSettings(tmp_path / f"spool{number}")
        run = Run(JOB, settings=TrainerSettings(redis_url=wrong, timing=timing, spool=spool))
        run.log("said all the same")
        receipt = run.finish()
        assert receipt.spooled == receipt.produced
        assert receipt.produced["logs"] == 1
    untrusted, missing = [record.getMessage() for record in caplog.records if "cannot send" in record.getMessage()]
    assert f"{UNTRUSTED} in REDIS_URL, ?ssl_ca_certs=/path/to/ca.pem; training goes on" in untrusted
    assert "the file of its CA is not there: name it in REDIS_URL, ?ssl_ca_certs=/path/to/ca.pem" in missing
    right = redis_over(ssl_ca_certs=tls.ca)
    for number in range(2):
        (left,) = send_leftovers(tmp_path / f"spool{number}", right, timing, 10)
        assert not any(left.receipt.unsent.values())
    assert client.xlen(stream_key("logs", 2)) == 2


def test_forked_children_and_their_parent_over_tls(
    redis_over: Callable[..., str], tls: Tls, client: redis.Redis, tmp_path: Path
) -> None:
    """A child leaves its parent's connection alone: what both say, before and after the fork, arrives."""
    env = os.environ | {"REDIS_URL": redis_over(ssl_ca_certs=tls.ca), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    page: list[Any] = client.xrange(stream_key("logs", 2)) or []
    envelopes = [open_envelope(fields) for _, fields in page]
    once: dict[Any, Any] = {(one.source, one.seq): decode_body("logs", one) for one in envelopes}  # may be resent
    said = sorted(line for body in once.values() for line in body.lines)
    assert said == ["after 0", "after 1", "after 2", "before", "child 0", "child 1", "child 2"]


def test_a_server_that_asks_for_a_certificate_of_ours(tls: Tls, resources: Resources, redis_url: str) -> None:
    """ssl_certfile and ssl_keyfile are shown to it by redis-py and by kombu; without them it lets nobody in."""
    proxy = tls.in_front_of(redis_url, "127.0.0.1", asks_clients=True)
    own = tls.authority.certificate("worker")
    shown = over(proxy, redis_url, "rediss", ssl_ca_certs=tls.ca, ssl_certfile=own, ssl_keyfile=own)
    with open_redis(settings_of(resources, redis_url=shown)) as client:
        assert client.ping()
    bells = Bells(shown)
    bells.ring("logs", 0)
    bells.close()
    assert resources.redis.llen(INGEST_QUEUE) == 1
    assert trouble_with(resources, over(proxy, redis_url, "rediss", ssl_ca_certs=tls.ca))  # closed, or an alert


def test_postgres_by_the_parameters_of_its_address(tls: Tls, resources: Resources, database_url: str) -> None:
    """`sslmode` and `sslrootcert` reach libpq; what it refuses is said with the setting."""
    proxy = tls.in_front_of(database_url)

    def engine_with(ca: object) -> Any:
        url = over(proxy, database_url, "postgresql", sslmode="verify-full", sslrootcert=ca)
        return open_engine(settings_of(resources, database_url=url))

    engine = engine_with(tls.ca)
    with engine.connect() as connection:
        assert connection.connection.driver_connection.pgconn.ssl_in_use
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()
    for ca, remedy in (
        (tls.stranger, "certificate verify failed: name the file of its CA in DATABASE_URL, ?sslmode=verify-full"),
        (
            "/nowhere.pem",
            'root certificate file "/nowhere.pem" does not exist: correct sslrootcert in DATABASE_URL',
        ),
    ):
        with pytest.raises(Unavailable) as caught, postgres_errors(), engine_with(ca).connect():
            pass
        assert f'127.0.0.1", port {proxy.port}' in str(caught.value)
        assert remedy in str(caught.value)


def test_loki_by_its_ca_file(tls: Tls, resources: Resources) -> None:
    """LOKI_CA_FILE is what Loki's certificate is checked with; without it Loki is away, and why is said."""
    with LokiTwin() as twin:
        proxy = tls.in_front_of(twin.url)
        secure = {"loki_url": f"https://127.0.0.1:{proxy.port}"}
        assert loki_http(settings_of(resources, **secure, loki_ca_file=tls.ca)).get("/ready", {}).status == 200
        for wrong in ({}, {"loki_ca_file": tls.stranger}):
            with pytest.raises(LokiUnavailable) as caught:
                loki_http(settings_of(resources, **secure, **wrong)).get("/ready", {})
            assert str(caught.value) == (
                f"Loki at 127.0.0.1:{proxy.port} cannot be used: {UNTRUSTED} with LOKI_CA_FILE"
            )
        plain = loki_http(settings_of(resources, loki_url=twin.url.replace("http://", "https://")))
        with pytest.raises(LokiUnavailable, match="it does not speak TLS: correct its address"):
            plain.get("/ready", {})


def test_a_ca_file_that_is_not_there_stops_workers_at_once(resources: Resources, tmp_path: Path) -> None:
    """A worker that could reach nothing does not start, and names the variable and the file."""
    missing = tmp_path / "ca.pem"
    with pytest.raises(WrongSettings, match=f"LOKI_CA_FILE cannot be read: {missing}: No such file"):
        settings_of(resources, loki_ca_file=missing)
    with pytest.raises(WrongSettings, match=f"REDIS_URL names ssl_ca_certs, which cannot be read: {missing}"):
        settings_of(resources, redis_url=f"rediss://:hush@h:6379/0?ssl_ca_certs={missing}")


def test_s3_by_its_ca_bundle(tls: Tls, bucket: Bucket, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_CA_BUNDLE is what trainers and workers check with; another CA is said by both, as what passes."""
    proxy = tls.in_front_of(s3_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{proxy.port}")
    uri = S3Uri(bucket.name, "checkpoints/42/1/last.pt")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.ca))
    ObjectStore().put(uri, b"weights")
    assert open_s3().head(uri).size_bytes == 7
    for wrong, said in (
        (tls.stranger, UNTRUSTED),
        ("/nowhere.pem", "the file of its CA is not there: name it"),
    ):
        monkeypatch.setenv("AWS_CA_BUNDLE", str(wrong))
        sentence = f"127.0.0.1:{proxy.port} cannot be used: {said} with AWS_CA_BUNDLE"
        with pytest.raises(StoreAway) as reading:
            open_s3().head(uri)
        assert sentence in str(reading.value)
        with pytest.raises(StoreUnavailable) as writing:
            ObjectStore().put(uri, b"weights")
        assert sentence in str(writing.value)


def test_mlflow_by_its_own_variable(
    tls: Tls, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own MLFLOW_TRACKING_SERVER_CERT_PATH counts for who reads and who writes."""
    proxy = tls.in_front_of(mlflow_server.url)
    url = f"https://127.0.0.1:{proxy.port}"
    for ca, is_fine in ((tls.ca, True), (tls.stranger, False)):
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(ca))
        for api in (MlflowApi(plain_send(url)), mlflow_api(url)):
            if is_fine:
                assert api.get("experiments/get-by-name", experiment_name="Default")["experiment"]
                continue
            with pytest.raises(MlflowUnavailable) as caught:
                api.get("experiments/get-by-name", experiment_name="Default")
            assert str(caught.value) == (
                f"MLflow at 127.0.0.1:{proxy.port} cannot be used: {UNTRUSTED} with "
                "MLFLOW_TRACKING_SERVER_CERT_PATH"
            )
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/nowhere.pem")
    for api in (MlflowApi(plain_send(url)), mlflow_api(url)):
        with pytest.raises(MlflowUnavailable, match=r"/nowhere\.pem"):
            api.get("experiments/get-by-name", experiment_name="Default")


def test_the_gateway_and_its_feed(
    tls: Tls, redis_over: Callable[..., str], resources: Resources, database_url: str
) -> None:
    """The page's feed hears through TLS what the notifier says; with another CA the gateway says what is wrong."""
    proxy = tls.in_front_of(database_url)
    database = over(proxy, database_url, "postgresql", sslmode="verify-full", sslrootcert=tls.ca)
    with GatewayServer(gateway_settings(database, redis_over(ssl_ca_certs=tls.ca))) as gateway:
        assert gateway.get("/readyz")["ready"]
        trainer = Trainer(resources, JOB)
        trainer.say(logs("before"))
        address = GatewayAddress(int(gateway.url.rpartition(":")[2]))
        with WebSocketClient(address, f"/jobs/{JOB}/ws") as follower:
            follower.until("logs", 1)
            trainer.say(logs("over TLS"))
            follower.until("logs", 2)
            assert follower.texts == ["before", "over TLS"]
        gateway.post(f"/jobs/{JOB + 1}/callback/logs", {"lines": ["called"]})
    with GatewayServer(gateway_settings(database, redis_over(ssl_ca_certs=tls.stranger))) as gateway:
        assert gateway.get("/readyz", 503)["checks"] == {"postgres": "ok", "redis": "does not answer"}
        refused = gateway.post(f"/jobs/{JOB}/callback/logs", {"lines": ["called"]}, 503)
        assert UNTRUSTED in refused["detail"]


def test_doctor_looks_through_tls(
    trainwire: Trainwire,  # noqa: F811 - the fixture of that name
    monkeypatch: pytest.MonkeyPatch,
    tls: Tls,
    redis_over: Callable[..., str],
    database_url: str,
) -> None:
    """It says that a certificate is trusted, that one is not verified, or what is wrong with it."""
    proxy = tls.in_front_of(database_url)
    monkeypatch.setenv("LOKI_ENABLED", "false")

    def look(redis_url: str, ca: Path) -> dict[str, Any]:
        database = over(proxy, database_url, "postgresql", sslmode="verify-full", sslrootcert=ca)
        monkeypatch.setenv("DATABASE_URL", database)
        monkeypatch.setenv("REDIS_URL", redis_url)
        found = json.loads(trainwire("doctor", "--json").out)
        return {f"{each['part']}.{each['check']}": each for each in found}

    found = look(redis_over(ssl_ca_certs=tls.ca), tls.ca)
    assert (found["redis.tls"]["level"], found["postgres.schema"]["level"]) == ("ok", "ok")
    assert look(redis_over(ssl_cert_reqs="none"), tls.ca)["redis.tls"]["level"] == "warning"
    found = look(redis_over(), tls.stranger)
    assert UNTRUSTED in found["redis.answers"]["says"]
    assert (
        "certificate verify failed: name the file of its CA in DATABASE_URL" in found["postgres.answers"]["says"]
    )
