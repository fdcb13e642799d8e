"""Groups of a trainer's settings: heartbeats, timing of the sender, checkpoints and spool."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from trainwire.ingest.settings.environment import absolute_path, optional_whole, parsed, seconds, word
from trainwire.ingest.settings.variables import CAPTURED_VARIABLE, SPOOL_VARIABLE, TRACE_VARIABLE
from trainwire.schemas.tracing import TRACEPARENT_VARIABLE, checked_traceparent, export_problem, is_exporting
from trainwire.schemas.wire.validation import MAX_ID

SPOOL_OFF: Final = "off"
LEAST_SPOOL_BYTES: Final = 4 * 1024 * 1024
LEAST_PAUSE_S: Final = 1
MOST_PAUSE_S: Final = 30 * 86_400


@dataclass(frozen=True)
class Vitals:
    """Settings of the heartbeats of a process.

    `stall_after_s` is the pause between messages after which the job counts as stalled; None: it follows from
    earlier pauses. `launcher` is the name of the launcher that has started this process, empty without one;
    `is_launcher` is True for a launcher.
    """

    interval_s: float = 10.0
    stall_after_s: float | None = None
    launcher: str = ""
    is_launcher: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Vitals:
        """Read the settings from `environ`, with the errors of `TrainerSettings.from_env`."""
        return cls(
            interval_s=seconds(environ, "TRAINWIRE_HEARTBEAT_S", cls.interval_s, 0.05, 20),
            stall_after_s=_stall_after_s(environ),
            launcher=environ.get(CAPTURED_VARIABLE, ""),
        )


@dataclass(frozen=True)
class Timing:
    """Intervals and timeouts of the sender, in seconds."""

    flush_interval_s: float = 0.05
    ack_interval_s: float = 0.2
    idle_ask_interval_s: float = 10.0
    """Interval of reading acknowledgements while all messages are acknowledged: a restore may lower them."""
    resend_after_s: float = 2.0
    """First pause between resends of messages that are reported missing; doubles while reports stay the same."""
    probe_after_s: float = 5.0
    """Seconds without a new message or acknowledgement until the newest message is sent again.

    Redis may have lost it. The time doubles with each resend.
    """
    longest_resend_s: float = 120.0
    """The longest pause between two resends of messages of one kind."""
    settle_s: float = 2.0
    """Time without a new acknowledgement after which `finish` returns, once everything is in Redis."""
    away_s: float = 2.0
    """Time for which `finish` tries to reach a Redis that has never answered, once everything is in the spool."""
    first_backoff_s: float = 0.1
    longest_backoff_s: float = 5.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Timing:
        """Read the settings that have a variable from `environ`, with the errors of `TrainerSettings.from_env`."""
        return cls(
            flush_interval_s=seconds(environ, "TRAINWIRE_FLUSH_INTERVAL_S", cls.flush_interval_s, 0.001, 60),
            settle_s=seconds(environ, "TRAINWIRE_SETTLE_S", cls.settle_s, 0, 600),
        )


@dataclass(frozen=True)
class CheckpointSettings:
    """Settings of checkpoint uploads. boto3 reads the server and the credentials from its AWS_* variables."""

    bucket: str | None = None
    prefix: str = "checkpoints"
    upload: Literal["auto", "none"] = "auto"
    snapshot: Literal["copy", "link"] = "copy"
    spool: Path | None = None
    """The folder for snapshots until their upload; None: a folder beside the checkpoint."""
    retry_s: float = 600.0
    """Duration of an outage of the object store after which a checkpoint is reported as not uploaded."""
    finish_s: float = 300.0
    """Time for which the end of the run waits for uploads if `finish` was called without a timeout."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> CheckpointSettings:
        """Read the settings from `environ`, with the errors of `TrainerSettings.from_env`."""
        spool = environ.get("TRAINWIRE_CHECKPOINT_SPOOL")
        prefix = environ.get("TRAINWIRE_CHECKPOINT_PREFIX", cls.prefix).strip("/")
        return cls(
            bucket=_bucket(environ),
            prefix=prefix,
            upload=word(environ, "TRAINWIRE_CHECKPOINT_UPLOAD", ("auto", "none")),
            snapshot=word(environ, "TRAINWIRE_CHECKPOINT_SNAPSHOT", ("copy", "link")),
            spool=absolute_path(spool) if spool else None,
            retry_s=seconds(environ, "TRAINWIRE_CHECKPOINT_RETRY_S", cls.retry_s, 0, 86_400),
            finish_s=seconds(environ, "TRAINWIRE_CHECKPOINT_FINISH_S", cls.finish_s, 0, 86_400),
        )


FullPolicy = Literal["drop_oldest_logs", "drop_newest", "block"]
"""The policy for a full spool: drop the oldest unsent lines (then points), drop new ones, or let calls wait."""


@dataclass(frozen=True)
class SpoolSettings:
    """Settings of the spool, which holds messages on the disk until they are committed in Postgres."""

    folder: Path | None = None
    """The folder of the spool; None: no spool, messages are kept in memory only."""
    limit_bytes: int = 4 * 1024**3
    when_full: FullPolicy = "drop_oldest_logs"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> SpoolSettings:
        """Read the settings from `environ`, with the errors of `TrainerSettings.from_env`."""
        return cls(
            folder=None if environ.get(SPOOL_VARIABLE) == SPOOL_OFF else default_spool_dir(environ),
            limit_bytes=optional_whole(environ, "TRAINWIRE_SPOOL_BYTES", LEAST_SPOOL_BYTES, MAX_ID)
            or cls.limit_bytes,
            when_full=word(environ, "TRAINWIRE_SPOOL_FULL", ("drop_oldest_logs", "drop_newest", "block")),
        )


@dataclass(frozen=True)
class TraceSettings:
    """Settings of tracing (docs/tracing.md); the SDK of OpenTelemetry reads its other variables itself.

    `is_on` is True if the environment names a collector. `problem` is a sentence about a variable with an unusable
    value; the run is then not traced. `caused_by` is the span of the process that started this one, and
    `parent_run` the span of its open run.
    """

    is_on: bool = False
    problem: str | None = None
    caused_by: str | None = None
    parent_run: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> TraceSettings:
        """Read the settings from `environ`; an invalid `traceparent` is ignored, as W3C Trace Context demands."""
        if not is_exporting(environ):
            return cls()
        return cls(
            is_on=True,
            problem=export_problem(environ),
            caused_by=checked_traceparent(environ.get(TRACEPARENT_VARIABLE)),
            parent_run=checked_traceparent(environ.get(TRACE_VARIABLE)),
        )


def default_spool_dir(environ: Mapping[str, str]) -> Path:
    """Return TRAINWIRE_SPOOL_DIR, or else a folder in the state directory of the XDG specification."""
    named = environ.get(SPOOL_VARIABLE)
    if named and named != SPOOL_OFF:
        return absolute_path(named)
    state = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME") or os.sep, ".local", "state")
    return Path(state, "trainwire", "spool")


def checked_pause_s(value: object, name: str = "stall_after_s") -> float:
    """Return `value` as a float if it is valid for `stall_after_s`.

    Raises a `ValueError` that begins with `name`, the argument or environment variable that has the value.
    """
    if not isinstance(value, int | float) or value is True or not LEAST_PAUSE_S <= value <= MOST_PAUSE_S:
        raise ValueError(f"{name}={value!r} is not a number of seconds from {LEAST_PAUSE_S} to {MOST_PAUSE_S}")
    return float(value)


def _stall_after_s(environ: Mapping[str, str]) -> float | None:
    text = environ.get("TRAINWIRE_STALL_AFTER_S")
    return checked_pause_s(parsed(float, text), "TRAINWIRE_STALL_AFTER_S") if text else None


def _bucket(environ: Mapping[str, str]) -> str | None:
    name = environ.get("TRAINWIRE_CHECKPOINT_BUCKET") or None
    if name is not None and "/" in name:
        raise ValueError(
            f"TRAINWIRE_CHECKPOINT_BUCKET={name!r} is not a bucket's name: give it without s3:// and path"
        )
    return name
