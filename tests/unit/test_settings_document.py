"""docs/settings.md states the defaults of the settings classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from trainwire.gateway.settings import GatewaySettings
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.stores.settings import read_settings
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.plugin import sink_settings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
NEEDED = {"DATABASE_URL": "postgresql://localhost/test", "REDIS_URL": "redis://localhost"}


def _defaults(section: str) -> dict[str, str]:
    """Return the default of each variable in the table of a section, empty for none."""
    (text,) = re.findall(rf"^## {section}.*?\n(.*?)(?=^## |\Z)", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`[A-Z].*?) \| (.*?) ?\| ", text, flags=re.MULTILINE)
    return {name: default.strip("`") for names, default in rows for name in re.findall(r"`(\w+)`", names)}


def _with(kind: type[BaseSettings], environ: Mapping[str, str], patch: pytest.MonkeyPatch) -> BaseSettings:
    for name in kind.model_fields:
        patch.delenv(name.upper(), raising=False)
    for name, value in {**NEEDED, **environ}.items():
        patch.setenv(name, value)
    return read_settings(kind)


def _check(kind: type[BaseSettings], name: str, default: str, patch: pytest.MonkeyPatch) -> None:
    field = kind.model_fields.get(name.lower())
    if field is None:
        assert name.startswith("FLOWER_")  # read by workers/operations/flower.py; no default
    elif default in {"", "required"}:
        assert field.is_required() == (default == "required")
        assert field.is_required() or field.get_default() in {None, "", SecretStr("")}
    else:
        assert _with(kind, {name: default}, patch) == _with(kind, {}, patch)


@pytest.mark.parametrize(("name", "default"), list(_defaults("Workers").items()))
def test_defaults_of_workers(name: str, default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting a worker's variable to its documented default changes nothing; one without has none."""
    of_sinks: list[type[BaseSettings]] = [kind for kind in sink_settings() if name.lower() in kind.model_fields]
    _check((of_sinks or [Settings])[0], name, default, monkeypatch)


@pytest.mark.parametrize(("name", "default"), list(_defaults("Gateway").items()))
def test_defaults_of_the_gateway(name: str, default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting a gateway's variable to its documented default changes nothing."""
    _check(GatewaySettings, name, default, monkeypatch)


@pytest.mark.parametrize(("name", "default"), list(_defaults("Trainers").items()))
def test_defaults_of_trainers(name: str, default: str) -> None:
    """Setting a trainer's variable to its documented default, or to nothing where it has none, changes nothing."""
    unset = {"HOME": str(Path.home())}
    assert TrainerSettings.from_env(unset | {name: default}) == TrainerSettings.from_env(unset)


def test_the_tables_are_read() -> None:
    """Each section's table is found, with the defaults as they stand there."""
    assert _defaults("Workers")["INGEST_SHARDS"] == "4"
    assert _defaults("Gateway")["GATEWAY_HOST"] == "127.0.0.1"
    assert _defaults("Trainers")["TRAINWIRE_SPOOL_FULL"] == "drop_oldest_logs"
    assert _defaults("Workers")["LOKI_PASSWORD"] == ""
