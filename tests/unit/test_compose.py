"""compose.yaml, the image and the settings fit together: no unread variable, no open port or privilege."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.twins.loki_rules import HOUR_NS, SECOND_NS, Limits
from trainwire.gateway.settings import GatewaySettings, load_gateway_settings
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.schemas.keys import QUEUES
from trainwire.schemas.sinks import SINKS
from trainwire.stack.locate import streams_url
from trainwire.workers.__main__ import parser
from trainwire.workers.settings import Settings, load_settings
from trainwire.workers.sinks.plugin import sink_settings, sinks_on

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
OURS: Final = {name: service for name, service in SERVICES.items() if service["image"].startswith("trainwire:")}
DOCKERFILE: Final = (ROOT / "deploy" / "Dockerfile").read_text()

BY_BOTO3: Final = {"AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
BY_FLOWER: Final = {"FLOWER_USER", "FLOWER_PASSWORD"}
READ_BY_US: Final = (
    {name.upper() for settings in (Settings, GatewaySettings) for name in settings.model_fields}
    | {name.upper() for settings in sink_settings() for name in settings.model_fields}
    | BY_BOTO3
    | BY_FLOWER
)
REDIS_URL: Final = "redis://broker:6379/0"
SERVERS: Final = {"database_url": "postgresql://postgres/trainwire", "redis_url": REDIS_URL}
ONE_SHOTS: Final = {"migrate", "bucket"}


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_read_by_a_settings_class(name: str) -> None:
    """compose.yaml sets only variables that a settings class reads."""
    assert set(OURS[name]["environment"]) <= READ_BY_US


@pytest.mark.parametrize("name", OURS)
def test_the_streams_may_be_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """STREAMS_URL of .env reaches each of our services; if it is empty there, it is unset for all."""
    assert OURS[name]["environment"]["STREAMS_URL"] == "${STREAMS_URL:-}"
    monkeypatch.setenv("STREAMS_URL", "")
    workers, gateway = load_settings(**SERVERS), load_gateway_settings(**SERVERS)
    assert (workers.streams_url, workers.streams_address) == (None, REDIS_URL)
    assert (gateway.streams_url, gateway.streams_address) == (None, REDIS_URL)
    assert TrainerSettings.from_env({"REDIS_URL": REDIS_URL, "STREAMS_URL": ""}).streams == REDIS_URL
    assert streams_url(REDIS_URL, os.environ) == REDIS_URL


def test_every_queue_has_a_worker() -> None:
    """The workers' commands are ones that `python -m trainwire.workers` takes, and read all queues of sinks
    that are on."""
    started = ["trainwire.workers", "worker"]
    workers = [service["command"] for service in OURS.values() if service["command"][2:4] == started]
    read = [queue for command in workers for queue in parser().parse_args(command[3:]).queues.split(",")]
    uri = OURS["worker"]["environment"]["MLFLOW_TRACKING_URI"]
    on = sinks_on(load_settings(**SERVERS, mlflow_tracking_uri=uri))
    assert sorted(read) == sorted(set(QUEUES) - {sink.queue for sink in SINKS.values() if sink not in on})


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_on_loopback_only(name: str) -> None:
    """The operator decides to publish a port to a network; compose.yaml does not."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", set(SERVICES) - set(OURS))
def test_versions_of_others_are_pinned(name: str) -> None:
    """Images of other projects have a fixed version."""
    assert re.search(r":v?\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", set(SERVICES) - ONE_SHOTS)
def test_every_long_running_service_has_a_health_check(name: str) -> None:
    """`docker compose up --wait` needs a health check of every service to wait until it is ready."""
    assert SERVICES[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", set(SERVICES) - ONE_SHOTS)
def test_health_is_asked_at_the_port_that_is_listened_to(name: str) -> None:
    """A port in a health check is one that the service itself names or publishes."""
    service = SERVICES[name]
    asked = re.findall(r"https?://[\w.]+:(\d+)", " ".join(service["healthcheck"]["test"]))
    published = {port.rpartition(":")[2] for port in service.get("ports", [])}
    assert set(asked) <= published


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_do_little(name: str) -> None:
    """Read-only root, no capabilities, no new privileges, an init that reaps, and not the user root."""
    service = OURS[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r"^USER [1-9]\d*", DOCKERFILE, re.MULTILINE)


def test_volumes_and_files_exist() -> None:
    """Named volumes are declared, mounted files are in the tree or made by make-env.sh."""
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = {mount for mount in mounts if not mount.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    made = {"./deploy/users.acl"}
    assert all((ROOT / mount).is_file() for mount in set(mounts) - named - made)


def test_passwords_are_made_and_never_given(tmp_path: Path) -> None:
    """make-env.sh makes every password that compose.yaml asks for, anew each time, readable by its owner only."""
    asked_for = re.findall(r"\$\{(\w+):\?run deploy/make-env.sh first\}", (ROOT / "compose.yaml").read_text())
    wanted = {*asked_for, "REDIS_TRAINER_PASSWORD"}  # which is for trainers
    first, second = made_env(tmp_path / "a"), made_env(tmp_path / "b")
    assert set(first) == set(second) == wanted
    assert all(len(value) >= 20 for value in first.values())
    assert not set(first.values()) & set(second.values())
    assert (tmp_path / "a" / ".env").stat().st_mode & 0o077 == 0
    acl = (tmp_path / "a" / "deploy" / "users.acl").read_text()
    assert "SHA256" not in acl
    assert not [value for value in first.values() if value in acl]


def test_passwords_are_not_made_twice(tmp_path: Path) -> None:
    """A second run, whose passwords would not fit the volumes, is refused with the reason."""
    made_env(tmp_path)
    before = (tmp_path / ".env").read_text()
    again = subprocess.run(
        [tmp_path / "deploy" / "make-env.sh"], check=False, capture_output=True, text=True, timeout=30
    )
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert (tmp_path / ".env").read_text() == before


def test_the_image_has_all_that_is_installed() -> None:
    """.dockerignore lets through the files that the wheel packs and its build needs, and nothing else."""
    packed = {"trainwire", *(path.name for path in (ROOT / "trainwire").iterdir() if path.is_symlink())}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    assert let_through == packed | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}


def test_loki_has_the_limits_of_the_deliveries() -> None:
    """The limits of deploy/loki.yaml are those that deliveries keep, and the twin of the tests."""
    limits = yaml.safe_load((ROOT / "deploy" / "loki.yaml").read_text())["limits_config"]
    twin = Limits()
    assert limits["max_line_size"] == f"{twin.max_line_bytes // 1024}KB"
    assert limits["reject_old_samples_max_age"] == f"{twin.max_age_ns // HOUR_NS}h"
    assert limits["creation_grace_period"] == f"{twin.max_ahead_ns // (60 * SECOND_NS)}m"


def made_env(folder: Path) -> dict[str, str]:
    """Run make-env.sh in a folder with copies of its files; return the variables that it wrote."""
    (folder / "deploy").mkdir(parents=True)
    for name in ("make-env.sh", "users.acl.template"):
        shutil.copy(ROOT / "deploy" / name, folder / "deploy")
    subprocess.run([folder / "deploy" / "make-env.sh"], check=True, capture_output=True, timeout=30)
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)
