"""Converts the arguments of `Run` methods to the types of message fields.

An invalid argument is omitted, with a warning in the log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any, Final, NamedTuple, SupportsFloat, TypeVar

from trainwire.ingest.completion import Ending, ending
from trainwire.ingest.lines.line_splitting import split_lines
from trainwire.ingest.process.interruptions import raise_interruption
from trainwire.ingest.sanitize import (
    count,
    exit_status,
    number,
    plain_mapping,
    plain_text,
    scalar,
    shown,
    truth,
    whole_of,
)
from trainwire.ingest.uploads.checkpoint import is_missing, location
from trainwire.schemas.wire.messages import ALERT_LEVELS, AlertLevel, LogType
from trainwire.schemas.wire.validation import MAX_TIME_NS, MIN_TIME_NS

if TYPE_CHECKING:
    from trainwire.ingest.uploads.uploads import UploadChoice

T = TypeVar("T")

LONGEST_TIMEOUT_S: Final = 10.0**9
"""Upper limit of timeouts, about 30 years: locks raise `OverflowError` for much longer ones."""
_STATUSES: Final = (
    dict.fromkeys(
        ("completed", "complete", "done", "finished", "ok", "passed", "succeeded", "success"), "completed"
    )
    | dict.fromkeys(
        ("failed", "abort", "aborted", "canceled", "cancelled", "crashed", "error", "fail", "failure", "killed"),
        "failed",
    )
    | dict.fromkeys(("preempted", "evicted", "pre-empted", "preempt", "preempting", "requeued"), "preempted")
)
"""Maps the status words of other trackers and schedulers to `completed`, `failed` or `preempted`."""


_ALERT_LEVELS: Final[dict[str, AlertLevel]] = {
    **{level: level for level in ALERT_LEVELS},
    "warn": "warning",
    "critical": "error",
    "fatal": "error",
    "debug": "info",
}


class WrongArgument(NamedTuple):
    """The warning about an invalid argument; `outcome` is the consequence, such as "left out".

    `is_dropped` is False if another value took its place.
    """

    name: str
    value: object
    reason: str
    outcome: str
    remedy: str
    is_dropped: bool = True

    def __str__(self) -> str:
        kind = type(self.value).__name__
        return f"{self.name}={shown(self.value)} ({kind}) is {self.reason}: {self.outcome}; {self.remedy}"


class Arguments:
    """Converts arguments of `Run` methods to the types of message fields; calls `report` for each invalid one."""

    def __init__(self, report: Callable[[WrongArgument], None]) -> None:
        self._report = report

    def numbers(self, name: str, values: object) -> dict[str, float]:
        """Return the metrics in `values` as floats by name, without those that are None.

        Invalid ones are left out with a warning.
        """
        numbers = {}
        for key, value in self.mapping(name, values).items():
            if value is None:
                continue
            as_float, metric = number(value), plain_text(key)
            if as_float is None:
                self._leave_out(f"metric {metric!r}", value, "not a number", _remedy(value))
            elif metric and not metric.isspace():
                numbers[metric] = as_float
            else:
                self._leave_out(f"metric {metric!r}", value, "without a name", "give it one, such as 'loss'")
        return numbers

    def mapping(self, name: str, values: object) -> dict[Any, Any]:
        """Return `values` as a dictionary, empty for None; log a warning and return an empty one if impossible."""
        if type(values) is dict:
            return dict(values)
        try:
            return {} if values is None else dict(values)  # type: ignore[call-overload]
        except Exception as exc:  # noqa: BLE001 - foreign code
            raise_interruption(exc)
            self._leave_out(name, values, "not a mapping of names to numbers", f"write {name}={{'loss': 0.5}}")
            return {}

    def count(self, name: str, value: object) -> int | None:
        """Return an epoch or a step as an integer, None for None; log a warning and return None if it is invalid.

        If `name` contains "epoch", a fraction, which some frameworks report, is rounded down with a warning. A
        step is not rounded, because the result could be the step of another point.
        """
        whole = None if value is None else count(value)
        if whole is not None or value is None:
            return whole
        floating = number(value)
        if "epoch" in name and floating is not None and abs(floating) < 2**53 and not isinstance(value, bool):
            whole = math.floor(floating)
            remedy = f"write {name}={whole}, and report the fraction as a metric if it is needed"
            self._replace(name, value, "not a whole number", whole, remedy)
            return whole
        if whole_of(value) is not None:
            self._leave_out(name, value, "beyond 64 bits", "give a number below 2**63")
        else:
            self._leave_out(name, value, "not a whole number", "give one, such as int(value)")
        return None

    def number(self, name: str, value: object) -> float | None:
        """Return `value` as a float; log a warning and return None if it is not a number."""
        return self._read(name, value, number, "not a number", _remedy(value))

    def truth(self, name: str, value: object) -> bool | None:
        """Return `value` as a bool; log a warning and return None if it is neither true nor false."""
        return self._read(name, value, truth, "neither true nor false", "write bool(...)")

    def log_type(self, value: object) -> LogType:
        """Return `stdout` or `stderr`; log a warning for any other value, and use `stdout` for an unknown one."""
        if type(value) is str and value in ("stdout", "stderr"):
            return "stderr" if value == "stderr" else "stdout"
        word = plain_text(value)
        taken: LogType = "stderr" if word.strip().lower() == "stderr" else "stdout"
        if word != taken:
            self._replace("log_type", value, "not a log type", taken, "write 'stdout' or 'stderr'")
        return taken

    def upload(self, value: object) -> UploadChoice | None:
        """Return `auto` or `none`; for None or, with a warning, for any other value, return None: the default."""
        word = None if value is None else plain_text(value)
        if word in ("auto", "none"):
            return "none" if word == "none" else "auto"
        if word is not None:
            self._replace("upload", value, "not a way to upload", None, "write 'auto' or 'none'")
        return None

    def alert_level(self, value: object) -> AlertLevel:
        """Return the level of an alert. An unknown one becomes `error`, so that no filter hides the alert."""
        word = plain_text(value).strip().lower()
        taken = _ALERT_LEVELS.get(word)
        if taken is None:
            self._replace("level", value, "not a level", "error", "write 'info', 'warning' or 'error'")
        return taken or "error"

    def kind(self, value: object) -> str:
        """Return the kind of a checkpoint as text; log a warning and return `last` if it is empty."""
        word = "" if value is None else plain_text(value)
        if not word:
            self._replace(
                "kind", value, "not a kind of checkpoint", "last", "write 'best', 'last' or another word"
            )
        return word or "last"

    def ending(self, status: object, exit_code: object, error: object) -> Ending:
        """Return the `Ending` for arguments of `finish`; log a warning for each invalid one.

        If `status` is an exit code or an exception, it is used as such, with a warning.
        """
        code = self._read("exit_code", exit_code, exit_status, "not a number", "give the exit code as an integer")
        if isinstance(status, BaseException) and error is None:
            self._replace("status", status, "not a way to end", "error", "write error=...")
            return ending(None, code, status)
        if isinstance(status, int) and not isinstance(status, bool) and exit_code is None:
            self._replace("status", status, "not a way to end", "exit_code", "write exit_code=...")
            return ending(None, exit_status(status), error)
        return ending(self._status(status), code, error)

    def timeout_s(self, value: object) -> float | None:
        """Return `value` as seconds, limited to 0 to `LONGEST_TIMEOUT_S`.

        Returns None, which means the default, for None and, with a warning, for an invalid value.
        """
        if value is None:
            return None
        seconds = number(value)
        if seconds is None or math.isnan(seconds):
            self._replace("timeout_s", value, "not a number of seconds", None, "write timeout_s=10")
            return None
        return min(max(0.0, seconds), LONGEST_TIMEOUT_S)

    def mlflow_run_id(self, value: object) -> str | None:
        """Return `value` if it is the id of a run in MLflow; log a warning and return None otherwise."""
        try:
            return checked_run_id(value)
        except ValueError:
            self._leave_out("mlflow_run_id", value, *_NO_RUN_ID)
            return None

    def path(self, name: str, value: object) -> str | None:
        """Return the location of a checkpoint: a path or a URI.

        Logs a warning and returns None if `value` is no path; None is accepted without a warning unless `name` is
        "path". A `path` at which there is nothing yet causes a warning only: it may be saved in the background.
        """
        text = location(value)
        if not text and (name == "path" or value is not None):
            self._leave_out(name, value, "not a path", "give a text or a pathlib.Path")
        elif name == "path" and is_missing(text):
            remedy = "report it once it is saved, or give its address, such as s3://bucket/best.pt"
            reason, outcome = "not a file or folder on this machine", "recorded, and not uploaded"
            self._report(WrongArgument(name, value, reason, outcome, remedy, is_dropped=False))
        return text or None

    def _status(self, value: object) -> str | None:
        """Map a word to `completed`, `failed` or `preempted`, an unknown one to `ended`, and None to None."""
        if value is None:
            return None
        word = plain_text(value)
        taken = _STATUSES.get(word.strip().lower(), "ended")
        if word != taken or taken == "ended":
            self._replace("status", value, "not a way to end", taken, "write 'completed', 'failed' or 'preempted'")
        return taken

    def _read(
        self, name: str, value: object, read: Callable[[object], T | None], reason: str, remedy: str
    ) -> T | None:
        found = read(value)
        if found is None and value is not None:
            self._leave_out(name, value, reason, remedy)
        return found

    def _leave_out(self, name: str, value: object, reason: str, remedy: str) -> None:
        self._report(WrongArgument(name, value, reason, "left out", remedy))

    def _replace(self, name: str, value: object, reason: str, taken: object, remedy: str) -> None:
        outcome = "the default is used" if taken is None else f"taken as {taken!r}"
        self._report(WrongArgument(name, value, reason, outcome, remedy, is_dropped=False))


_NO_RUN_ID: Final = ("not the id of a run in MLflow", "write mlflow.active_run().info.run_id")


def description(
    name: object, params: Mapping[str, Any] | None, tags: Mapping[str, Any] | None, mlflow_run_id: object
) -> dict[str, Any]:
    """Check the arguments that describe a job, and return them as fields of a `Metrics` message.

    A blank name becomes None. Raises `ValueError` if one of them is invalid.
    """
    named = "" if name is None else plain_text(name)
    return {
        "name": named if named.strip() else None,
        "params": None if params is None else plain_mapping("params", params),
        "tags": None if tags is None else plain_mapping("tags", tags),
        "mlflow_run_id": None if mlflow_run_id is None else checked_run_id(mlflow_run_id),
    }


def grouped(tags: Mapping[str, Any] | None, project: object, group: object) -> Mapping[str, Any] | None:
    """Return `tags` with the tags `project` and `group` set to these arguments, unless they are None or blank.

    If `tags` is not a mapping, it is returned unchanged.
    """
    named = {
        name: plain_text(given) for name, given in (("project", project), ("group", group)) if given is not None
    }
    found = {name: value.strip() for name, value in named.items() if value.strip()}
    if not found or not isinstance(tags, Mapping | None):
        return tags
    return {**(tags or {}), **found}


def checked_run_id(value: object) -> str:
    """Return `value` as text if it can be the id of a run in MLflow; raise `ValueError` otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"mlflow_run_id={shown(value)} is {': '.join(_NO_RUN_ID)}")
    return plain_text(value)


def moment_ns(value: object) -> int:
    """Return `value` as nanoseconds since 1970; the current time if it is invalid or out of range."""
    whole = count(value)
    return whole if whole is not None and MIN_TIME_NS <= whole <= MAX_TIME_NS else time.time_ns()


def line_texts(lines: object) -> list[str]:
    """Return each item of `lines` as a string; a single string, or a value without items, is split at newlines."""
    if isinstance(lines, str) or not isinstance(lines, Iterable):
        return split_lines(plain_text(lines))
    return [plain_text(line) for line in lines]


def _remedy(value: object) -> str:
    """Return advice on how to correct `value`, which is not a number; the warning about it ends with this text."""
    try:
        return next((remedy for is_like, remedy in _REMEDIES if is_like(scalar(value))), "give a float")
    except Exception as exc:  # noqa: BLE001 - foreign code
        raise_interruption(exc)
        return "give a float"


_REMEDIES: Final[tuple[tuple[Callable[[Any], bool], str], ...]] = (
    (
        lambda value: isinstance(value, str | bytes),
        "convert it, such as float('0.5'), or log it as a line with run.log",
    ),
    (lambda value: isinstance(value, complex), "give abs(value), or its real and imag under two names"),
    (lambda value: isinstance(value, Mapping), "give each of its values a name, such as {'train/loss': 0.5}"),
    (
        lambda value: bool(getattr(value, "shape", None)) or isinstance(value, Sized),
        "reduce it to one number, such as value.mean()",
    ),
    (
        lambda value: isinstance(value, SupportsFloat),
        "a float has no room for it: give its logarithm, such as math.log10(value)",
    ),
)
