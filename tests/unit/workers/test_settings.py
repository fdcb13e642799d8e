"""The workers' settings: wrong ones are named, secrets are not."""

from __future__ import annotations

import pytest

from trainwire.stores.settings import WrongSettings
from trainwire.workers.settings import load_settings

GOOD = {"database_url": "postgresql://u:hush@h/db", "redis_url": "redis://:hush@h:6379/0"}


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "INGEST_SHARDS", "DRAIN_SLICE_S"):
        monkeypatch.delenv(name, raising=False)


def test_missing_variables_are_named_with_the_remedy() -> None:
    """Without any setting the error names both variables and the command that gives them."""
    with pytest.raises(
        WrongSettings, match=r"DATABASE_URL is not set: run `trainwire up`.*\nREDIS_URL is not set"
    ):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("INGEST_SHARDS", "0", "INGEST_SHARDS Input should be greater than or equal to 1 (it is '0')"),
        ("DRAIN_SLICE_S", "soon", "DRAIN_SLICE_S Input should be a valid number"),
        ("DATABASE_URL", "mysql://u:hush@h/db", "DATABASE_URL starts with mysql://"),
        ("DATABASE_URL", "hush", "DATABASE_URL is not a URL like postgresql://"),
        ("REDIS_URL", "http://:hush@h", "REDIS_URL is not a Redis address: write redis://"),
        ("REDIS_URL", "unix://:hush@/run/redis.sock", "REDIS_URL is a Unix socket, which neither Celery's broker"),
        ("REDIS_URL", "redis://u:hush@h:70000/0", "has the port '70000', which is not a number from 1 to 65535"),
        (
            "STREAMS_URL",
            "redis://u:hush@h/one",
            "STREAMS_URL has the database 'one', which is not a number: write",
        ),
        (
            "STREAMS_URL",
            "redis+cluster://u:hush@h:x",
            "STREAMS_URL names 'h:x', which is not host:port: write redis+c",
        ),
        ("DATABASE_URL", "postgresql://u:hush@h:x/d", "DATABASE_URL has the port 'x', which is not a number"),
        ("STREAMS_URL", "unix:///run/redis.sock", "and write redis://127.0.0.1:6379/0"),
        ("MLFLOW_TRACKING_URI", "http://me:hush@mlflow:5000", "MLFLOW_TRACKING_URI is not an address of a server"),
        ("MLFLOW_EXPERIMENT", "", "MLFLOW_EXPERIMENT String should have at least 1 character"),
    ],
)
def test_a_wrong_variable_is_named_with_its_rule(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names variable and rule, and never repeats a URL, which may hold a password."""
    for key, good in GOOD.items():
        monkeypatch.setenv(key.upper(), good)
    monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings) as caught:
        load_settings()
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


def test_retention_needs_to_know_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where deleting is switched on, or tried, the bucket that may be deleted from has to be named."""
    monkeypatch.delenv("TRAINWIRE_CHECKPOINT_BUCKET", raising=False)
    monkeypatch.setenv("CHECKPOINT_RETENTION", "dry-run")
    with pytest.raises(WrongSettings, match="CHECKPOINT_RETENTION is dry-run, but TRAINWIRE_CHECKPOINT_BUCKET"):
        load_settings(**GOOD)
    monkeypatch.setenv("TRAINWIRE_CHECKPOINT_BUCKET", "models")
    assert load_settings(**GOOD).checkpoint_retention == "dry-run"


def test_secrets_are_masked() -> None:
    """The settings can be logged: passwords are not in their text."""
    settings = load_settings(**GOOD)
    assert "hush" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.sqlalchemy_url().drivername == "postgresql+psycopg"
