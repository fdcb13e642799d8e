"""deploy/kubernetes starts what compose.yaml starts, sets what the code reads, and renders to valid objects."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.unit.test_compose import OURS, READ_BY_US, ROOT
from trainwire.schemas import prometheus_metrics

FOLDER: Final = ROOT / "deploy" / "kubernetes"
OVERLAYS: Final = ("small", "ha")
BASE: Final[list[dict[str, Any]]] = [
    each for path in sorted((FOLDER / "base").glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())
]
SETTINGS: Final = dict(
    line.split("=", 1)
    for line in (FOLDER / "base" / "settings.env").read_text().splitlines()
    if line and not line.startswith("#")
)
KUBECTL: Final = shutil.which("kubectl")
CRDS: Final = {"ScaledObject", "ServiceMonitor"}
"""Kinds of KEDA and the Prometheus operator, which have no published schema in Kubernetes itself."""


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the pod specification of each Deployment and Job, by name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in objects
        if each["kind"] in {"Deployment", "Job"}
    }


def container(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the one container of a pod."""
    (found,) = pod["containers"]
    return dict(found)


def test_the_same_processes_as_in_compose() -> None:
    """Each of our services in compose.yaml but the one that makes a bucket is here, with the same command."""
    commands = {name: container(pod)["command"] for name, pod in pods(BASE).items()}
    assert commands == {name: service["command"] for name, service in OURS.items() if name != "bucket"}


def test_settings_are_read() -> None:
    """settings.env sets only variables that a settings class reads, and no address with a password."""
    assert set(SETTINGS) <= READ_BY_US
    assert not [name for name in SETTINGS if name.endswith(("_URL", "_KEY", "PASSWORD"))]


def test_the_version_is_that_of_the_package() -> None:
    """The image's tag is the version in pyproject.toml."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    (image,) = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["images"]
    assert version is not None
    assert image == {"name": "trainwire", "newTag": version[1]}


@pytest.mark.parametrize("name", pods(BASE))
def test_ports_are_those_that_are_listened_to(name: str) -> None:
    """A port is in the command, or it is GATEWAY_PORT; every probe names a declared port."""
    spec = container(pods(BASE)[name])
    ports = {port["name"]: str(port["containerPort"]) for port in spec.get("ports", [])}
    listened = {*spec["command"], SETTINGS["GATEWAY_PORT"]}
    assert set(ports.values()) <= listened
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = spec.get(probe, {})
        named = {asked[kind]["port"] for kind in ("httpGet", "tcpSocket") if kind in asked}
        assert named <= set(ports)
        if "exec" in asked:
            assert SETTINGS["ALIVE_FILE"] in asked["exec"]["command"][-1]


def test_workers_may_finish_the_order_in_hand() -> None:
    """The grace period of each worker is longer than the time limit of an order."""
    (limit_s,) = re.findall(r"task_time_limit=(\d+)", (ROOT / "workers" / "app.py").read_text())
    for pod in pods(BASE).values():
        if "worker" in container(pod)["command"]:
            assert pod["terminationGracePeriodSeconds"] > int(limit_s)


def test_scaling_is_by_the_age_of_what_waits() -> None:
    """KEDA's query is a metric that the exporter has, and its limit of replicas leaves none without a stream."""
    (scaling,) = yaml.safe_load_all((FOLDER / "ha" / "scaling.yaml").read_text())
    (trigger,) = scaling["spec"]["triggers"]
    names = re.findall(r"trainwire_\w+", trigger["metadata"]["query"])
    source = Path(prometheus_metrics.__file__).read_text()
    assert names == ["trainwire_stream_lag_seconds"]
    assert f'"{names[0]}"' in source


@pytest.fixture(params=OVERLAYS)
def rendered(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The objects of an overlay, in one file."""
    if KUBECTL is None:
        pytest.skip("no kubectl: make kubernetes")
    path = tmp_path / "objects.yaml"
    run = subprocess.run(
        [KUBECTL, "kustomize", FOLDER / request.param], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    path.write_text(run.stdout)
    return path


def test_objects_are_valid(rendered: Path) -> None:
    """Every object of Kubernetes itself fits its published schema, without an unknown field."""
    schemas = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate: make kubernetes")
    for each in yaml.safe_load_all(rendered.read_text()):
        if each["kind"] not in CRDS:
            schemas.validate(each, "1.34", strict=True)


def test_pods_can_do_little(rendered: Path) -> None:
    """Every pod meets the Pod Security Standard `restricted`, and has a read-only root."""
    for pod in pods(list(yaml.safe_load_all(rendered.read_text()))).values():
        spec, user = container(pod), pod["securityContext"]
        assert (user["runAsNonRoot"], user["runAsUser"]) == (True, 10001)
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["mountPath"] for mount in spec["volumeMounts"]} <= {"/tmp", "/etc/trainwire"}
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert [sorted(source)[0] for source in spec["envFrom"]] == ["configMapRef", "secretRef"]
        assert spec["resources"]["limits"]["memory"]


def test_selectors_find_pods(rendered: Path) -> None:
    """Services, budgets, policies, monitors and scaling select something that exists."""
    objects = list(yaml.safe_load_all(rendered.read_text()))
    names = {each["metadata"]["name"] for each in objects if each["kind"] == "Deployment"}
    label = "app.kubernetes.io/name"
    for each in objects:
        spec = each.get("spec", {})
        match each["kind"]:
            case "Service":
                assert spec["selector"][label] in names
            case "PodDisruptionBudget" | "ServiceMonitor":
                assert spec["selector"]["matchLabels"][label] in names
            case "NetworkPolicy" if spec["podSelector"]:
                assert spec["podSelector"]["matchLabels"][label] in names
            case "ScaledObject":
                assert spec["scaleTargetRef"]["name"] in names
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "trainwire"


@pytest.mark.parametrize("path", sorted((FOLDER / "examples").iterdir()), ids=lambda path: path.name)
def test_examples_set_what_trainers_read(path: Path) -> None:
    """The variables of the examples are in the table of trainers' settings, and their Service exists."""
    text = path.read_text()
    documented = (ROOT / "docs" / "settings.md").read_text()
    assert all(f"`{name}`" in documented for name in set(re.findall(r"TRAINWIRE_[A-Z_]+", text)))
    services = {each["metadata"]["name"] for each in BASE if each["kind"] == "Service"}
    assert set(re.findall(r"http://([a-z]+)\.trainwire\.svc", text)) <= services
