"""What a trainer can be told from outside: the only place of `ingest` that reads the environment."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

from trainwire.ingest.process.launches import find_launch
from trainwire.ingest.process.ranks import RANK_VARIABLE, WORLD_SIZE_VARIABLE, find_place
from trainwire.ingest.running_stacks import StackFolders
from trainwire.schemas.messages import ATTEMPT_UNKNOWN, MAX_WORLD_SIZE, PROVENANCE_ITEMS
from trainwire.schemas.redis_urls import redis_url_problem, shown_url
from trainwire.schemas.streams.urls import cluster_nodes, is_cluster
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID

JOB_ID_VARIABLE: Final = "TRAINWIRE_JOB_ID"
ATTEMPT_VARIABLE: Final = "TRAINWIRE_ATTEMPT"
PARENT_VARIABLE: Final = "TRAINWIRE_PARENT_RUN"
CAPTURED_VARIABLE: Final = "TRAINWIRE_CAPTURED"
TRACEBACKS_VARIABLE: Final = "TRAINWIRE_TRACEBACKS"
REDIS_URL_VARIABLE: Final = "REDIS_URL"
STREAMS_URL_VARIABLE: Final = "STREAMS_URL"
PROVENANCE_VARIABLE: Final = "TRAINWIRE_PROVENANCE"
PAGE_URL_VARIABLE: Final = "TRAINWIRE_PAGE_URL"

WordT = TypeVar("WordT", bound=str)

DEFAULT_BUFFER_BYTES: Final = 256 * 1024 * 1024
LEAST_BUFFER_BYTES: Final = 64 * 1024
SPOOL_VARIABLE: Final = "TRAINWIRE_SPOOL_DIR"
SPOOL_OFF: Final = "off"
LEAST_SPOOL_BYTES: Final = 4 * 1024 * 1024
LEAST_PAUSE_S: Final = 1
MOST_PAUSE_S: Final = 30 * 86_400


@dataclass(frozen=True)
class Vitals:
    """How a process shows that it lives.

    `stall_after_s` is the longest pause it promises, None for no promise. `launcher` is the source of the launcher
    that it runs under, empty for none; `is_launcher` tells whether it is one itself.
    """

    interval_s: float = 10.0
    stall_after_s: float | None = None
    launcher: str = ""
    is_launcher: bool = False


@dataclass(frozen=True)
class Timing:
    """How long the sender waits for what; all in seconds."""

    flush_interval_s: float = 0.05
    ack_interval_s: float = 0.2
    idle_ask_interval_s: float = 10.0
    """How often the acks are read while none is awaited: a restore of Postgres takes back those of before."""
    resend_after_s: float = 2.0
    """Messages reported missing are sent again at most this often; doubles while nothing changes."""
    probe_after_s: float = 5.0
    """So long without news, the last message is sent again to find out whether Redis lost the tail; doubles."""
    patience_limit_s: float = 120.0
    settle_s: float = 2.0
    """How long `finish` waits for news of the workers once everything is in Redis."""
    away_s: float = 2.0
    """How long `finish` tries a Redis that has never answered, when everything is on the disk."""
    first_backoff_s: float = 0.1
    longest_backoff_s: float = 5.0


@dataclass(frozen=True)
class CheckpointSettings:
    """Where checkpoint files are uploaded, if anywhere; the server and the keys are boto3's AWS_* variables."""

    bucket: str | None = None
    prefix: str = "checkpoints"
    upload: Literal["auto", "none"] = "auto"
    snapshot: Literal["copy", "link"] = "copy"
    spool: Path | None = None
    """Where snapshots are kept until they are uploaded; None: beside the checkpoint."""
    retry_s: float = 600.0
    """How long an outage of the store may last before a checkpoint is reported as not uploaded."""
    finish_s: float = 300.0
    """How long the end of the run waits for uploads where `finish` is not told."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> CheckpointSettings:
        """Read the settings; raise `ValueError` naming the variable, its value and what is allowed."""
        spool = environ.get("TRAINWIRE_CHECKPOINT_SPOOL")
        prefix = environ.get("TRAINWIRE_CHECKPOINT_PREFIX", cls.prefix).strip("/")
        return cls(
            bucket=_bucket(environ),
            prefix=prefix,
            upload=_word(environ, "TRAINWIRE_CHECKPOINT_UPLOAD", ("auto", "none")),
            snapshot=_word(environ, "TRAINWIRE_CHECKPOINT_SNAPSHOT", ("copy", "link")),
            spool=_absolute(spool) if spool else None,
            retry_s=_seconds(environ, "TRAINWIRE_CHECKPOINT_RETRY_S", cls.retry_s, 0, 86_400),
            finish_s=_seconds(environ, "TRAINWIRE_CHECKPOINT_FINISH_S", cls.finish_s, 0, 86_400),
        )


FullPolicy = Literal["drop_oldest_logs", "drop_newest", "block"]
"""What happens when the spool is full: the oldest unsent lines go, or what is new, or who speaks waits."""


@dataclass(frozen=True)
class SpoolSettings:
    """Where messages are kept on the disk until they are committed in Postgres."""

    folder: Path | None = None
    """None: in memory alone."""
    limit_bytes: int = 4 * 1024**3
    when_full: FullPolicy = "drop_oldest_logs"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> SpoolSettings:
        """Read the settings; raise `ValueError` naming the variable, its value and what is allowed."""
        return cls(
            folder=None if environ.get(SPOOL_VARIABLE) == SPOOL_OFF else default_spool_dir(environ),
            limit_bytes=_optional_whole(environ, "TRAINWIRE_SPOOL_BYTES", LEAST_SPOOL_BYTES, MAX_ID)
            or cls.limit_bytes,
            when_full=_word(environ, "TRAINWIRE_SPOOL_FULL", ("drop_oldest_logs", "drop_newest", "block")),
        )


def default_spool_dir(environ: Mapping[str, str]) -> Path:
    """Return the spool's folder of a user who names none: that of the XDG base directories for state."""
    named = environ.get(SPOOL_VARIABLE)
    if named and named != SPOOL_OFF:
        return _absolute(named)
    state = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME") or os.sep, ".local", "state")
    return Path(state, "trainwire", "spool")


@dataclass(frozen=True)
class ParentRun:
    """The open run of the process that started this one, where it is not the launcher."""

    job_id: int
    attempt: int
    started_at_ns: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> ParentRun | None:
        """Read what the parent has exported; None where there is nothing that can be read."""
        parts = environ.get(PARENT_VARIABLE, "").split(":")
        is_readable = len(parts) == 3 and all(part.isdecimal() and len(part) < 20 for part in parts)
        return cls(*map(int, parts)) if is_readable else None


@dataclass(frozen=True)
class TrainerSettings:
    """Where messages go, who says them, and how much memory they may take."""

    redis_url: str | None = field(default=None, repr=False)  # may hold a password
    """None: the Redis of this user's running `trainwire up`, and while there is none, the spool alone."""
    streams_url: str | None = field(default=None, repr=False)
    """Where the streams are, if not at `redis_url`, the broker of the Celery workers."""
    job_id: int | None = None
    parent: ParentRun | None = None
    launch: str | None = None
    """Identity of the launch of which this process is one of several ranks; None: there is none, or unknown."""
    attempt: int = ATTEMPT_UNKNOWN
    rank: int | None = None
    world_size: int | None = None
    """How many ranks the attempt has that use trainwire; None where that is not known."""
    buffer_bytes: int = DEFAULT_BUFFER_BYTES
    is_captured: bool = False
    traceback_folder: Path | None = None
    """Where tracebacks are left to the launcher."""
    log_lines_per_s: int | None = None
    """Beyond so many a second log lines are sampled; None: all are taken."""
    timing: Timing = Timing()
    checkpoints: CheckpointSettings = CheckpointSettings()
    spool: SpoolSettings = SpoolSettings()
    vitals: Vitals = field(default_factory=Vitals)
    stacks: StackFolders | None = None
    """Where running stacks are looked for; None: where the environment of the process says."""
    strict: bool = False
    """Whether a store that is away, or a rank that is taken, is an error (docs/strict.md)."""
    page_url: str | None = None
    """Where the web page is, for the line with the job's address at the start."""
    quiet: bool = False
    """Whether that line is left out."""
    provenance: frozenset[str] = frozenset()
    """Items that are collected at the start (docs/provenance.md): none where settings are made in code."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> TrainerSettings:
        """Read the settings; raise `ValueError` naming the variable, its value and what is allowed."""
        place = find_place(
            environ,
            _optional_whole(environ, RANK_VARIABLE, 0, MAX_ATTEMPT),
            _optional_whole(environ, WORLD_SIZE_VARIABLE, 1, MAX_WORLD_SIZE),
        )
        return cls(
            redis_url=checked_redis_url(url) if (url := environ.get(REDIS_URL_VARIABLE)) else None,
            stacks=StackFolders.from_env(environ),
            streams_url=streams_url_of(environ),
            job_id=_optional_whole(environ, JOB_ID_VARIABLE, 1, MAX_ID),
            parent=ParentRun.from_env(environ),
            launch=find_launch(environ, place),
            attempt=_attempt(environ),
            rank=place.rank,
            world_size=place.world_size,
            buffer_bytes=_optional_whole(environ, "TRAINWIRE_BUFFER_BYTES", LEAST_BUFFER_BYTES, MAX_ID)
            or DEFAULT_BUFFER_BYTES,
            log_lines_per_s=_optional_whole(environ, "TRAINWIRE_LOG_LINES_PER_S", 1, MAX_ID),
            is_captured=bool(environ.get(CAPTURED_VARIABLE)),
            traceback_folder=Path(folder) if (folder := environ.get(TRACEBACKS_VARIABLE)) else None,
            timing=Timing(
                flush_interval_s=_seconds(
                    environ, "TRAINWIRE_FLUSH_INTERVAL_S", Timing.flush_interval_s, 0.001, 60
                ),
                settle_s=_seconds(environ, "TRAINWIRE_SETTLE_S", Timing.settle_s, 0, 600),
            ),
            checkpoints=CheckpointSettings.from_env(environ),
            spool=SpoolSettings.from_env(environ),
            strict=_word(environ, "TRAINWIRE_STRICT", ("off", "on")) == "on",
            page_url=environ.get(PAGE_URL_VARIABLE) or None,
            quiet=_word(environ, "TRAINWIRE_QUIET", ("off", "on")) == "on",
            provenance=_provenance(environ.get(PROVENANCE_VARIABLE) or "all"),
            vitals=Vitals(
                interval_s=_seconds(environ, "TRAINWIRE_HEARTBEAT_S", Vitals.interval_s, 0.05, 20),
                stall_after_s=_stall_after_s(environ),
                launcher=environ.get(CAPTURED_VARIABLE, ""),
            ),
        )

    @property
    def streams(self) -> str | None:
        """Return the address of the server that has the streams, None where none is named."""
        return self.streams_url or self.redis_url

    def promising(self, stall_after_s: float | None) -> TrainerSettings:
        """Return these settings with another promise, if one is said; raise `ValueError` when it is none."""
        if stall_after_s is None:
            return self
        return replace(self, vitals=replace(self.vitals, stall_after_s=checked_pause_s(stall_after_s)))

    def strictly(self, strict: bool | None) -> TrainerSettings:
        """Return these settings, strict or not where that is said."""
        return self if strict is None else replace(self, strict=strict)

    def as_launcher(self) -> TrainerSettings:
        """Return the settings of a launcher, which is no rival of the trainers that it starts."""
        return replace(self, vitals=replace(self.vitals, is_launcher=True))

    def at(self, redis_url: str | None) -> TrainerSettings:
        """Return these settings with another address, if one is said; raise `ValueError` when it is none."""
        return self if redis_url is None else replace(self, redis_url=checked_redis_url(redis_url, "redis_url"))

    def at_stack(self, data_dir: Path | None) -> TrainerSettings:
        """Return these settings for the running stack of a data folder, whatever the environment names."""
        if data_dir is None:
            return self
        stacks = (self.stacks or StackFolders.from_env()).at(data_dir)
        return replace(self, redis_url=None, streams_url=None, stacks=stacks)


def checked_pause_s(seconds: object, name: str = "stall_after_s") -> float:
    """Return the longest pause a trainer promises, in seconds, else raise `ValueError`."""
    if not isinstance(seconds, int | float) or seconds is True or not LEAST_PAUSE_S <= seconds <= MOST_PAUSE_S:
        raise ValueError(f"{name}={seconds!r} is not a number of seconds from {LEAST_PAUSE_S} to {MOST_PAUSE_S}")
    return float(seconds)


def checked_redis_url(url: str, name: str = REDIS_URL_VARIABLE) -> str:
    """Return `url` if it can be one of a Redis server, else raise `ValueError`; a password is never shown."""
    if (problem := redis_url_problem(url)) is not None:
        raise ValueError(f"{name}={shown_url(url)!r} {problem}")
    return url


def streams_url_of(environ: Mapping[str, str]) -> str | None:
    """Return where the streams are, if not at REDIS_URL; raise `ValueError` where it is no address."""
    url = environ.get(STREAMS_URL_VARIABLE) or None
    if url is None or not is_cluster(url):
        return None if url is None else checked_redis_url(url, STREAMS_URL_VARIABLE)
    try:
        cluster_nodes(url)
    except ValueError as exc:
        raise ValueError(
            f"{STREAMS_URL_VARIABLE}={shown_url(url)!r} {exc}: write redis+cluster://host:6379,host:6379"
        ) from exc
    return url


def shown_host(redis_url: str) -> str:
    """Return host and port of an address, of all servers of a cluster, without user and password."""
    if is_cluster(redis_url):
        return ",".join(f"{host}:{port}" for host, port in cluster_nodes(redis_url))
    parts = urlsplit(redis_url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def public_address(redis_url: str) -> str:
    """Return an address without user and password, with no parameters but those of TLS."""
    address, _, query = redis_url.partition("?")
    scheme, _, rest = address.partition("://")
    tls = "&".join(part for part in query.split("&") if part.startswith("ssl_"))
    return f"{scheme}://{rest.rpartition('@')[2]}" + (f"?{tls}" if tls else "")


def server_of(redis_url: str) -> str:
    """Return which server and database an address names, as host:port/db."""
    if is_cluster(redis_url):
        return f"{shown_host(redis_url)}/0"
    return f"{shown_host(redis_url)}/{urlsplit(redis_url).path.strip('/') or 0}"


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """Return `value` as a whole number of the range, else raise `ValueError` naming all of it."""
    try:
        number = least - 1 if isinstance(value, bool) else int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{name}={value!r} is not a whole number from {least} to {most}")
    return number


def _absolute(path: str) -> Path:
    """Return the path of a folder, which a later change of the working folder does not move."""
    try:
        return Path(os.path.abspath(os.path.expanduser(path)))
    except OSError:  # the working folder was deleted
        return Path(path)


def _optional_whole(environ: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = environ.get(name)
    return whole_number(name, _parsed(int, text), least, most) if text else None


def _attempt(environ: Mapping[str, str]) -> int:
    said = _optional_whole(environ, ATTEMPT_VARIABLE, 0, MAX_ATTEMPT)
    return ATTEMPT_UNKNOWN if said is None else said


def _seconds(environ: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    seconds = _parsed(float, text)
    if not isinstance(seconds, float) or not least <= seconds <= most:  # NaN is in no range
        raise ValueError(f"{name}={text!r} is not a number of seconds from {least} to {most}")
    return seconds


def _stall_after_s(environ: Mapping[str, str]) -> float | None:
    text = environ.get("TRAINWIRE_STALL_AFTER_S")
    return checked_pause_s(_parsed(float, text), "TRAINWIRE_STALL_AFTER_S") if text else None


def _bucket(environ: Mapping[str, str]) -> str | None:
    name = environ.get("TRAINWIRE_CHECKPOINT_BUCKET") or None
    if name is not None and "/" in name:
        raise ValueError(
            f"TRAINWIRE_CHECKPOINT_BUCKET={name!r} is not a bucket's name: say it without s3:// and without a path"
        )
    return name


def _provenance(text: str) -> frozenset[str]:
    """Return the items of `all`, `off`, a list of items, or a list of those to leave out (`-diff,-user`)."""
    names = [name.strip() for name in text.split(",")]
    if names in (["all"], ["off"]):
        return frozenset(PROVENANCE_ITEMS if names == ["all"] else ())
    left_out = {name[1:] for name in names if name.startswith("-")}
    kept = {name for name in names if not name.startswith("-")} - {"all"}
    if unknown := (left_out | kept) - set(PROVENANCE_ITEMS):
        raise ValueError(
            f"{PROVENANCE_VARIABLE}={text!r}: {sorted(unknown)[0]!r} is not one of {', '.join(PROVENANCE_ITEMS)}; "
            "write all, off, items with commas in between, or items to leave out, such as -diff,-user"
        )
    return frozenset(kept or PROVENANCE_ITEMS) - left_out


def _word(environ: Mapping[str, str], name: str, words: tuple[WordT, ...]) -> WordT:
    """Return which of `words` is set, the first where none is."""
    said = environ.get(name) or words[0]
    for word in words:
        if said == word:
            return word
    raise ValueError(f"{name}={said!r} is not one of {', '.join(words)}")


def _parsed(parse: Callable[[str], int | float], text: str) -> int | float | str:
    """Return the number, or the text itself where it is none: the range check then names it."""
    try:
        return parse(text)
    except ValueError:
        return text
