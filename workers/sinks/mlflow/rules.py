"""What MLflow takes, and how what it does not take is adapted: always the same way, and said in notes.

The limits are those of `mlflow.utils.validation`, seen at a running server too (docs/mlflow.md).
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
"""Params or tags of a request, which may have a million bytes; proxies too often take no more."""
MAX_NAME_BYTES: Final = 250
"""MLflow says characters, but where it keeps files it fails on more bytes than a file's name may have."""
MAX_RUN_NAME_CHARS: Final = 250
MAX_PARAM_CHARS: Final = 6000
OLD_PARAM_CHARS: Final = 500
"""What servers before 2.8 take of a param's value."""
MAX_TAG_CHARS: Final = 5000
"""What all servers take of a tag's value; newer ones take 8000."""
MOST_OF_AN_ATTEMPT: Final = 1000
"""Params, and tags: beyond this a run can hardly be looked at."""
MOST_NOTES: Final = 200
STOPPED: Final = "stopped"
"""The note of an attempt of which nothing more is sent."""
RESERVED_PREFIX: Final = "mlflow."
OURS: Final = frozenset({"job_id", "attempt", "superseded_by"})

_HASH_CHARS: Final = 8
_SHOWN_CHARS: Final = 100
_SAFE: Final = re.compile(r"[/\w.\- :]+")
_UNSAFE: Final = re.compile(r"[^/\w.\- :]+")
_FINAL: Final[dict[str, RunStatus]] = {
    "completed": "FINISHED",
    "failed": "FAILED",
    "ended": "KILLED",
    "lost": "KILLED",
}


class Metric(NamedTuple):
    """One value as MLflow takes it; sorted as MLflow wants a batch."""

    key: str
    step: int
    timestamp: int
    value: float | str
    row: MetricRow

    def document(self) -> dict[str, object]:
        """Return it as the REST API has it."""
        return {"key": self.key, "value": self.value, "timestamp": self.timestamp, "step": self.step}


class Notes:
    """What was adapted, by what it was: the first so many, then only that there are more."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self.texts = dict(known or {})

    def add(self, what: str, how: str) -> None:
        """Say how something was adapted; once is enough."""
        key = what if len(what) <= _SHOWN_CHARS else f"{what[:_SHOWN_CHARS]}…"
        if key in self.texts or len(self.texts) < MOST_NOTES:
            self.texts[key] = how
        else:
            self.texts["more"] = "more names and values were adapted than are noted"


@lru_cache(maxsize=4096)
def safe_name(name: str) -> str:
    """Return a name that MLflow takes: itself, or a readable form that ends in a hash of the name.

    By the hash two names never become one, and a name becomes the same whatever was sent before.
    """
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) <= MAX_NAME_BYTES and _SAFE.fullmatch(name) and _is_plain_path(name):
        return name
    parts = [part for part in _UNSAFE.sub("_", name).split("/") if part not in {"", ".", ".."}]
    readable = "/".join(parts).encode()[: MAX_NAME_BYTES - _HASH_CHARS - 1].decode("utf-8", "ignore")
    return f"{readable or 'unnamed'}-{hashlib.sha256(raw).hexdigest()[:_HASH_CHARS]}"


def metrics_of(row: MetricRow, notes: Notes) -> Iterator[Metric]:
    """Yield the values of a row; those of ranks other than 0 under names of their own."""
    prefix = f"rank_{row.rank}/" if row.rank else ""
    timestamp = max(row.ts_ms, 0)
    if row.ts_ms < 0:
        notes.add("times", "before 1970 are sent as 1970")
    for name, value in row.values.items():
        key = safe_name(prefix + name)
        if key != prefix + name:
            notes.add(f"metric {prefix}{name}", f"is called {key}")
        yield Metric(key, row.step, timestamp, value, row)


def metric_requests(metrics: Iterable[Metric]) -> Iterator[list[Metric]]:
    """Yield the values request by request, sorted; with the longest names each is below MLflow's million bytes."""
    ordered = sorted(metrics, key=lambda metric: metric[:3])
    for begin in range(0, len(ordered), MOST_METRICS):
        yield ordered[begin : begin + MOST_METRICS]


def text_requests(texts: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    """Yield params or tags request by request, each within MLflow's limits."""
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
    """Return the params of a run, every value as the text that MLflow's own client makes of it."""
    params = {}
    for name, value in _first(attempt.params, "params", notes):
        key = safe_name(name)
        if key != name:
            notes.add(f"param {name}", f"is called {key}")
        params[key] = cut(f"param {name}", text_of(value), MAX_PARAM_CHARS, notes)
    return params


def tags_of(attempt: AttemptState, notes: Notes) -> dict[str, str]:
    """Return the tags of a run that the trainer gave; what is MLflow's or ours to set gets another name."""
    tags = {}
    for name, value in _first(attempt.tags, "tags", notes):
        own = f"user.{name}" if name in OURS or name.startswith((RESERVED_PREFIX, "trainwire.")) else name
        key = safe_name(own)
        if key != name:
            notes.add(f"tag {name}", f"is called {key}")
        tags[key] = cut(f"tag {name}", text_of(value), MAX_TAG_CHARS, notes)
    return tags


def provenance_tags(attempt: AttemptState, notes: Notes) -> dict[str, str]:
    """Return the tags of a run's code and machine: those that MLflow's own client sets, where there are such."""
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
    """Return what the run is called."""
    name = " ".join((attempt.name or f"job {job_id}").split()) or f"job {job_id}"
    return name[:MAX_RUN_NAME_CHARS]


def final_status(status: str) -> RunStatus | None:
    """Return how a run of an attempt with this status ends; None while it goes on."""
    return _FINAL.get(status)


def text_of(value: Any) -> str:
    """Return a param or tag as text: as Python says it, like MLflow's client; lists and maps as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def cut(what: str, text: str, limit: int, notes: Notes) -> str:
    """Return a text no longer than the limit; what is cut says so at its end."""
    if len(text) <= limit:
        return text
    mark = f"… ({len(text):,} characters)"
    notes.add(what, f"is cut after {limit:,} of {len(text):,} characters")
    return text[: limit - len(mark)] + mark


def milliseconds(at: datetime) -> int:
    """Return a time as MLflow has it; what is before 1970 is 1970."""
    return max(int(at.timestamp() * 1000), 0)


def _first(values: Mapping[str, Any] | None, what: str, notes: Notes) -> list[tuple[str, Any]]:
    items = list((values or {}).items())
    if len(items) > MOST_OF_AN_ATTEMPT:
        notes.add(what, f"only the first {MOST_OF_AN_ATTEMPT:,} of {len(items):,} are in MLflow")
    return items[:MOST_OF_AN_ATTEMPT]


def _is_plain_path(name: str) -> bool:
    """Tell whether a name, taken as a path, names the same: MLflow may store it as a file."""
    return posixpath.normpath(name) == name and not name.startswith(("..", "/")) and name != "."
