"""Checks of Loki for `trainwire doctor`."""

from __future__ import annotations

from typing import Final

from trainwire.stores.loki.config import hidden_after, setting, shown_config
from trainwire.stores.loki.http import LokiUnavailable, loki_http, words_of
from trainwire.workers.findings import Finding, Findings, Part
from trainwire.workers.settings import Settings

LOKI: Final = Part("loki")
LIMITS: Final = {
    "allow_structured_metadata": (
        "false",
        "allow_structured_metadata: true (and schema v13), or every push is refused",
    ),
    "unordered_writes": ("false", "unordered_writes: true, or lines of several ranks are refused"),
}
"""Limits of Loki's configuration with the value that hurts, and what to set."""
FILE_SYSTEM: Final = "filesystem"


def examine(settings: Settings) -> Findings:
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
