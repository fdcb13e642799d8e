"""Loki, MLflow and the object store: do they answer, and let us do what we do?"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from schemas.checkpoint_keys import S3Uri
from stores.loki_config import hidden_after, setting, shown_config
from stores.loki_http import LokiUnavailable, loki_http, words_of
from stores.mlflow_http import MISSING, MlflowApi, MlflowRefused, MlflowUnavailable, plain_send
from stores.s3 import NoSuchObject, NotAllowed, S3Store, StoreAway, open_s3
from trainwire.doctor.finding import Finding, Findings, Part
from workers.settings import Settings

LOKI: Final = Part("loki")
MLFLOW: Final = Part("mlflow")
S3: Final = Part("s3")
LIMITS: Final = {
    "allow_structured_metadata": (
        "false",
        "allow_structured_metadata: true (and schema v13), or every push is refused",
    ),
    "unordered_writes": ("false", "unordered_writes: true, or lines of several ranks are refused"),
}
"""Limits of Loki's configuration with the value that hurts, and what to set."""
FILE_SYSTEM: Final = "filesystem"


def look_at_loki(settings: Settings) -> Findings:
    """Yield whether Loki is ready, and which of its limits stop us."""
    http = loki_http(settings)
    remedy = "start it, correct LOKI_URL, or set LOKI_ENABLED=false; until then log rows wait in Postgres"
    try:
        ready = http.get("/ready", {})
        if ready.status != 200:
            yield LOKI.warning("ready", f"is not ready: {ready.status} {words_of(ready)[:200]}", remedy)
            return
        yield LOKI.ok("ready", "is ready")
        config = shown_config(http)
    except LokiUnavailable as exc:
        yield LOKI.error("ready", str(exc), remedy)
        return
    if config is None:
        yield LOKI.ok("limits", "does not show its limits")
    else:
        yield from _limits(config)
        yield _late_lines(config)


def _limits(config: str) -> Findings:
    bad = False
    for name, (hurts, remedy) in LIMITS.items():
        if setting(config, name) == hurts:
            bad = True
            yield LOKI.error("limits", f"{name} is {hurts}", f"in its limits_config: {remedy}")
    if not bad:
        yield LOKI.ok("limits", "its limits let our lines in")


def _late_lines(config: str) -> Finding:
    age = hidden_after(config)
    if age is None:
        return LOKI.ok("late-lines", "finds at once what comes late")
    says = f"lines that come over {age} late are found half an hour after their delivery"
    if setting(config, "object_store") != FILE_SYSTEM:
        return LOKI.ok("late-lines", f"{says}: wait so long before `trainwire verify` or `replay` of such a job")
    return LOKI.warning(
        "late-lines", says, "in its configuration: ingester: query_store_max_look_back_period: -1ns"
    )


def look_at_mlflow(uri: str, experiment: str) -> Findings:
    """Yield whether MLflow answers us, and whether its experiment can be written."""
    try:
        found = MlflowApi(plain_send(uri)).get("experiments/get-by-name", experiment_name=experiment)
    except MlflowRefused as exc:
        if exc.code == MISSING:
            yield MLFLOW.ok("answers", f"answers; the experiment {experiment!r} is made when it is needed")
        else:
            yield MLFLOW.error("answers", f"refuses: {exc}", "look at its log, and at MLFLOW_TRACKING_URI")
        return
    except MlflowUnavailable as exc:
        yield MLFLOW.error(
            "answers", str(exc), "start it, or correct MLFLOW_TRACKING_URI; metrics wait in Postgres"
        )
        return
    if found.get("experiment", {}).get("lifecycle_stage") == "deleted":
        says = f"the experiment {experiment!r} is deleted, and everything waits"
        yield MLFLOW.error("experiment", says, "restore it (mlflow experiments restore), or set MLFLOW_EXPERIMENT")
    else:
        yield MLFLOW.ok("answers", f"answers, with the experiment {experiment!r}")


def look_at_s3(bucket: str, prefix: str) -> Findings:
    """Yield which of our operations the object store allows, tried with an object of a few bytes."""
    key = "/".join(part for part in (prefix.strip("/"), f".trainwire-doctor-{secrets.token_hex(6)}") if part)
    probe = S3Uri(bucket, key)
    try:
        store = open_s3()
        yield from _try_all(store, probe)
    except StoreAway as exc:
        yield S3.error("answers", str(exc), "start it, or correct AWS_ENDPOINT_URL and the credentials")


def _try_all(store: S3Store, probe: S3Uri) -> Findings:
    steps: dict[str, Callable[[], object]] = {
        "put": lambda: store.put(probe, b"trainwire doctor\n"),
        "head": lambda: store.head(probe),
        "read": lambda: b"".join(store.read(probe)),
        "list": lambda: store.has_any(S3Uri(probe.bucket, probe.key.rpartition("/")[0])),
        "delete": lambda: store.delete(probe),
    }
    for name, step in steps.items():
        yield _tried(name, probe, step)


def _tried(name: str, probe: S3Uri, step: Callable[[], object]) -> Finding:
    try:
        step()
    except NoSuchObject:
        says = f"{name}: there is no bucket {probe.bucket!r}, or it forgets objects at once"
        return S3.error(name, says, "create the bucket, or correct TRAINWIRE_CHECKPOINT_BUCKET")
    except NotAllowed as exc:
        remedy = f"allow {_ACTIONS[name]} on {probe.bucket} ({_NEEDED_BY[name]})"
        return (S3.warning if name in {"delete", "list"} else S3.error)(name, str(exc), remedy)
    return S3.ok(name, f"{name} is allowed")


_ACTIONS: Final = {
    "put": "s3:PutObject",
    "head": "s3:GetObject",
    "read": "s3:GetObject",
    "list": "s3:ListBucket",
    "delete": "s3:DeleteObject",
}
_NEEDED_BY: Final = {
    "put": "trainers upload",
    "head": "workers verify",
    "read": "downloads",
    "list": "workers tell a missing object from a forbidden one",
    "delete": "CHECKPOINT_REMOVE_SUPERSEDED, CHECKPOINT_RETENTION",
}
