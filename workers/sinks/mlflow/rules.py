"""Adapts names and values to MLflow's limits, and records a note about each adaptation.

The same name always has the same result. The limits are those of `mlflow.utils.validation`, checked against a
running server (docs/mlflow.md).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

from trainwire.stores.mlflow.runs import RunStatus
from trainwire.workers.sinks.mlflow.rows import AttemptState, MetricRow

MOST_METRICS: Final = 1000
MOST_PARAMS_OR_TAGS: Final = 100
MOST_TEXT_BYTES: Final = 500_000
"""Maximum size of the params or tags in one request.

MLflow allows a million bytes, but many proxies allow less.
"""
MAX_NAME_BYTES: Final = 250
"""Maximum length of a name.

MLflow's limit is in characters, but its file store fails if a file name has more bytes.
"""
MAX_RUN_NAME_CHARS: Final = 250
MAX_PARAM_CHARS: Final = 6000
OLD_PARAM_CHARS: Final = 500
"""Maximum length of a param's value in servers before version 2.8."""
MAX_TAG_CHARS: Final = 5000
"""Maximum length of a tag's value that all servers accept; newer ones accept 8000."""
MOST_OF_AN_ATTEMPT: Final = 1000
"""Maximum number of params, and of tags: a run with more is hardly usable in MLflow's UI."""
MOST_NOTES: Final = 200
STOPPED: Final = "stopped"
"""Key of the note that marks an attempt as no longer sent to MLflow, because its run was deleted there."""
RESERVED_PREFIX: Final = "mlflow."
OURS: Final = frozenset({"job_id", "attempt", "superseded_by"})

_HASH_CHARS: Final = 8
_SHOWN_CHARS: Final = 100
_SAFE: Final = re.compile(r"[/\w.\- :]+")
_UNSAFE: Final = re.compile(r"[^/\w.\- :]+")
FINAL_STATUS: Final[dict[str, RunStatus]] = {
    "completed": "FINISHED",
    "failed": "FAILED",
    "ended": "KILLED",
    "stopped": "KILLED",
    "preempted": "KILLED",
    "lost": "KILLED",
}
"""MLflow's run status for each status of an attempt that has ended."""


class MetricValue(NamedTuple):
    """One metric value for MLflow. These tuples sort in the order that MLflow requires in a request."""

    key: str
    step: int
    timestamp: int
    value: float | str
    row: MetricRow

    def document(self) -> dict[str, object]:
        """Return the value as a JSON object for MLflow's REST API."""
        return {"key": self.key, "value": self.value, "timestamp": self.timestamp, "step": self.step}


class Notes:
    """Notes on adapted names and values, by name. After `MOST_NOTES`, one note states that there are more."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self.texts = dict(known or {})

    def add(self, name: str, how: str) -> None:
        """Record that `name` was adapted; `how` is a description of the change."""
        key = name if len(name) <= _SHOWN_CHARS else f"{name[:_SHOWN_CHARS]}…"
        if key in self.texts or len(self.texts) < MOST_NOTES:
            self.texts[key] = how
        else:
            self.texts["more"] = "more names and values were adapted than are noted"


@lru_cache(maxsize=4096)
def safe_name(name: str) -> str:
    """Return `name` if MLflow accepts it, else a readable form of it that ends in a hash of the name.

    The hash keeps different names apart, and makes the result independent of other names. Example: `loss?` becomes
    `loss_-` and eight hexadecimal digits.
    """
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) <= MAX_NAME_BYTES and _SAFE.fullmatch(name) and _is_plain_path(name):
        return name
    parts = [part for part in _UNSAFE.sub("_", name).split("/") if part not in {"", ".", ".."}]
    readable = "/".join(parts).encode()[: MAX_NAME_BYTES - _HASH_CHARS - 1].decode("utf-8", "ignore")
    return f"{readable or 'unnamed'}-{hashlib.sha256(raw).hexdigest()[:_HASH_CHARS]}"


def metrics_of(row: MetricRow, notes: Notes) -> Iterator[MetricValue]:
    """Yield the metric values of a row. Names of ranks other than 0 get the prefix `rank_<n>/`."""
    prefix = f"rank_{row.rank}/" if row.rank else ""
    timestamp = max(row.ts_ms, 0)
    if row.ts_ms < 0:
        notes.add("times", "before 1970 are sent as 1970")
    for name, value in row.values.items():
        key = safe_name(prefix + name)
        if key != prefix + name:
            notes.add(f"metric {prefix}{name}", f"is called {key}")
        yield MetricValue(key, row.step, timestamp, value, row)


def metric_requests(metrics: Iterable[MetricValue]) -> Iterator[list[MetricValue]]:
    """Yield lists of up to `MOST_METRICS` metric values, one per request, in the order that MLflow requires.

    Each request is smaller than a million bytes, however long the names are.
    """
    ordered = sorted(metrics, key=lambda metric: metric[:3])
    for begin in range(0, len(ordered), MOST_METRICS):
        yield ordered[begin : begin + MOST_METRICS]


def text_requests(texts: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    """Yield lists of (name, value) pairs of params or tags, one per request, within MLflow's limits."""
    request: list[tuple[str, str]] = []
    room = MOST_TEXT_BYTES
    for name, value in texts.items():
        size = len(name.encode()) + len(value.encode())
        if request and (len(request) == MOST_PARAMS_OR_TAGS or size > room):
            yield request
            request, room = [], MOST_TEXT_BYTES
        request.append((name, value))
        room -= size
    if request:
        yield request


def params_of(attempt: AttemptState, notes: Notes) -> dict[str, str]:
    """Return the params for the run of an attempt, with values as text like those of MLflow's own client.

    They are adapted to MLflow's limits; at most `MOST_OF_AN_ATTEMPT` are returned.
    """
    params = {}
    for name, value in _first(attempt.params, "params", notes):
        key = safe_name(name)
        if key != name:
            notes.add(f"param {name}", f"is called {key}")
        params[key] = cut(f"param {name}", text_of(value), MAX_PARAM_CHARS, notes)
    return params


def tags_of(attempt: AttemptState, notes: Notes) -> dict[str, str]:
    """Return the trainer's tags for the run of an attempt. Reserved names get the prefix `user.`.

    They are adapted to MLflow's limits; at most `MOST_OF_AN_ATTEMPT` are returned.
    """
    tags = {}
    for name, value in _first(attempt.tags, "tags", notes):
        own = f"user.{name}" if name in OURS or name.startswith((RESERVED_PREFIX, "trainwire.")) else name
        key = safe_name(own)
        if key != name:
            notes.add(f"tag {name}", f"is called {key}")
        tags[key] = cut(f"tag {name}", text_of(value), MAX_TAG_CHARS, notes)
    return tags


def provenance_tags(attempt: AttemptState, notes: Notes) -> dict[str, str]:
    """Return tags about the code and machine of an attempt, with the names that MLflow's client uses if any."""
    found = attempt.provenance or {}
    git, host = (found[name] if isinstance(found.get(name), dict) else {} for name in ("git", "host"))
    command = found.get("command")
    tags = {
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
        "mlflow.source.git.repoURL": git.get("remote"),
        "mlflow.user": found.get("user"),
        "trainwire.host": host.get("name"),
        "trainwire.command": shlex.join(map(str, command)) if isinstance(command, list) else None,
    }
    return {name: cut(f"tag {name}", str(value), MAX_TAG_CHARS, notes) for name, value in tags.items() if value}


def run_name(job_id: int, attempt: AttemptState) -> str:
    """Return the name of the MLflow run of an attempt: the job's name or, without one, `job` and its number."""
    name = " ".join((attempt.name or f"job {job_id}").split()) or f"job {job_id}"
    return name[:MAX_RUN_NAME_CHARS]


def text_of(value: Any) -> str:
    """Return the value of a param or tag as text: JSON for lists and maps, else `str`, like MLflow's client."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def cut(name: str, text: str, limit: int, notes: Notes) -> str:
    """Return `text`, truncated to `limit` characters if it is longer.

    Truncated text ends with a mark, and a note under `name` is added to `notes`.
    """
    if len(text) <= limit:
        return text
    mark = f"… ({len(text):,} characters)"
    notes.add(name, f"is cut after {limit:,} of {len(text):,} characters")
    return text[: limit - len(mark)] + mark


def milliseconds(at: datetime) -> int:
    """Return a time in milliseconds since 1970; 0 for earlier times."""
    return max(int(at.timestamp() * 1000), 0)


def _first(values: Mapping[str, Any] | None, field: str, notes: Notes) -> list[tuple[str, Any]]:
    items = list((values or {}).items())
    if len(items) > MOST_OF_AN_ATTEMPT:
        notes.add(field, f"only the first {MOST_OF_AN_ATTEMPT:,} of {len(items):,} are in MLflow")
    return items[:MOST_OF_AN_ATTEMPT]


def _is_plain_path(name: str) -> bool:
    """Return whether a name is a normalized relative path, because MLflow may store the metric as a file."""
    return posixpath.normpath(name) == name and not name.startswith(("..", "/")) and name != "."
