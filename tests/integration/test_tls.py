"""TLS to every store but Redis: certificates are checked with the configured CA, and errors name the setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.factories import logs
from tests.gateway_server import GatewayServer, gateway_settings
from tests.integration.cli.conftest import Trainwire, alone, trainwire  # noqa: F401 - fixtures
from tests.integration.conftest import Bucket
from tests.integration.gateway.feed_clients import GatewayAddress, Trainer, WebSocketClient
from tests.mlflow_server import MlflowServer
from tests.tls_servers import UNTRUSTED, Tls, over, settings_of
from tests.twins.loki import LokiTwin
from trainwire.ingest.uploads.object_store import ObjectStore
from trainwire.ingest.uploads.retry import StoreUnavailable
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.stores.files.s3 import S3Unavailable, open_s3
from trainwire.stores.loki.http import LokiUnavailable, loki_http
from trainwire.stores.mlflow.http import MlflowApi, MlflowUnavailable, plain_send
from trainwire.stores.postgres.connections import open_engine
from trainwire.stores.settings import WrongSettings
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.mlflow.plugin import mlflow_api

JOB = 42


def test_postgres_by_the_parameters_of_its_address(tls: Tls, resources: Resources, database_url: str) -> None:
    """`sslmode` and `sslrootcert` reach libpq; its refusal is reported with the setting."""
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
    """Loki's certificate is checked with LOKI_CA_FILE; without it the error has the reason and the setting."""
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
        with pytest.raises(LokiUnavailable, match="it does not use TLS: correct its address"):
            plain.get("/ready", {})


def test_a_ca_file_that_is_not_there_stops_workers_at_once(resources: Resources, tmp_path: Path) -> None:
    """A worker with a missing CA file does not start, and the error names the variable and the file."""
    missing = tmp_path / "ca.pem"
    with pytest.raises(WrongSettings, match=f"LOKI_CA_FILE cannot be read: {missing}: No such file"):
        settings_of(resources, loki_ca_file=missing)
    with pytest.raises(WrongSettings, match=f"REDIS_URL names ssl_ca_certs, which cannot be read: {missing}"):
        settings_of(resources, redis_url=f"rediss://:hush@h:6379/0?ssl_ca_certs={missing}")


def test_s3_by_its_ca_bundle(tls: Tls, bucket: Bucket, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers and workers check with AWS_CA_BUNDLE; both treat an untrusted CA as a temporary error."""
    proxy = tls.in_front_of(s3_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{proxy.port}")
    uri = S3Uri(bucket.name, "checkpoints/42/1/last.pt")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.ca))
    ObjectStore().put(uri, b"weights")
    assert open_s3().head(uri).size_bytes == 7
    for wrong, reason in (
        (tls.stranger, UNTRUSTED),
        ("/nowhere.pem", "the file of its CA is not there: name it"),
    ):
        monkeypatch.setenv("AWS_CA_BUNDLE", str(wrong))
        sentence = f"127.0.0.1:{proxy.port} cannot be used: {reason} with AWS_CA_BUNDLE"
        with pytest.raises(S3Unavailable) as reading:
            open_s3().head(uri)
        assert sentence in str(reading.value)
        with pytest.raises(StoreUnavailable) as writing:
            ObjectStore().put(uri, b"weights")
        assert sentence in str(writing.value)


def test_mlflow_by_its_own_variable(
    tls: Tls, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own MLFLOW_TRACKING_SERVER_CERT_PATH applies to the worker's client and to the reading one."""
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
    """The page's feed gets events over TLS; with another CA the gateway's answers contain the TLS error."""
    proxy = tls.in_front_of(database_url)
    database = over(proxy, database_url, "postgresql", sslmode="verify-full", sslrootcert=tls.ca)
    with GatewayServer(gateway_settings(database, redis_over(ssl_ca_certs=tls.ca))) as gateway:
        assert gateway.get("/readyz")["ready"]
        trainer = Trainer(resources, JOB)
        trainer.send(logs("before"))
        address = GatewayAddress(int(gateway.url.rpartition(":")[2]))
        with WebSocketClient(address, f"/jobs/{JOB}/ws") as follower:
            follower.until("logs", 1)
            trainer.send(logs("over TLS"))
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
    """It reports a trusted certificate, an unverified one, or the error."""
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
