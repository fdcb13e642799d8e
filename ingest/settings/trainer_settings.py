"""The settings of a trainer, read from its environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from trainwire.ingest.process.launches import find_launch
from trainwire.ingest.process.ranks import RANK_VARIABLE, WORLD_SIZE_VARIABLE, find_place
from trainwire.ingest.settings.environment import optional_whole, word
from trainwire.ingest.settings.running_stacks import StackFolders
from trainwire.ingest.settings.server_addresses import checked_redis_url, checked_url, streams_url_of, token_of
from trainwire.ingest.settings.setting_groups import (
    CheckpointSettings,
    SpoolSettings,
    Timing,
    TraceSettings,
    Vitals,
    checked_pause_s,
)
from trainwire.ingest.settings.variables import (
    ATTEMPT_VARIABLE,
    CAPTURED_VARIABLE,
    DISABLED_VARIABLE,
    JOB_ID_VARIABLE,
    JOB_NAME_VARIABLE,
    LAUNCHER_FOLDER_VARIABLE,
    PAGE_URL_VARIABLE,
    PARENT_VARIABLE,
    PROVENANCE_VARIABLE,
    REDIS_URL_VARIABLE,
    RESUME_VARIABLE,
    STREAMS_URL_VARIABLE,
    URL_VARIABLE,
)
from trainwire.schemas.gateway_urls import base_of, is_gateway
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN, MAX_WORLD_SIZE, PROVENANCE_ITEMS
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID

_ADDRESSES: Final = (URL_VARIABLE, STREAMS_URL_VARIABLE, REDIS_URL_VARIABLE)
_CAUTIOUS: Final = {PROVENANCE_VARIABLE: "off", "TRAINWIRE_CHECKPOINT_UPLOAD": "none"}
"""Values that replace invalid ones of these variables, so that nothing is sent that the user meant to exclude."""

DEFAULT_BUFFER_BYTES: Final = 256 * 1024 * 1024
LEAST_BUFFER_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class ParentRun:
    """The open run of the process that started this one, unless that process is a launcher."""

    job_id: int
    attempt: int
    started_at_ns: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> ParentRun | None:
        """Read TRAINWIRE_PARENT_RUN, which the parent process exports; None if it is missing or malformed."""
        parts = environ.get(PARENT_VARIABLE, "").split(":")
        is_readable = len(parts) == 3 and all(part.isdecimal() and len(part) < 20 for part in parts)
        return cls(*map(int, parts)) if is_readable else None


@dataclass(frozen=True)
class TrainerSettings:
    """The settings of a run: server, job, rank, memory, and groups such as `timing` and `spool`."""

    redis_url: str | None = field(default=None, repr=False)  # may hold a password
    """The address of Redis; None: that of this user's `trainwire up`.

    While none is running, messages stay in the spool.
    """
    streams_url: str | None = field(default=None, repr=False)
    """The address of the Redis with the streams; None: the streams are in the Redis at `redis_url`."""
    url: str | None = None
    """The address of a gateway: messages go there over HTTPS, and not to Redis."""
    token: str | None = field(default=None, repr=False)
    """The token for the gateway at `url`."""
    job_id: int | None = None
    job_name: str | None = None
    """The name of the job `job_id`, used for its runs that are given no name."""
    parent: ParentRun | None = None
    launch: str | None = None
    """Identity of the distributed launch in which this process is a rank; None if there is none, or unknown."""
    attempt: int = ATTEMPT_UNKNOWN
    resume_step: int | None = None
    """The step from which the attempt goes on, as the launcher exports it."""
    rank: int | None = None
    world_size: int | None = None
    """The number of ranks of the attempt that use trainwire; None if it is unknown."""
    buffer_bytes: int = DEFAULT_BUFFER_BYTES
    is_captured: bool = False
    """Whether a launcher or a parent process captures the output of this process."""
    launcher_logs_outages: bool = False
    """Whether a server that refuses this run, or is unreachable, is so for its launcher too, which logs it."""
    launcher_folder: Path | None = None
    """The folder in which tracebacks are left for the launcher to log."""
    log_lines_per_s: int | None = None
    """The number of log lines per second beyond which they are sampled; None: no limit."""
    timing: Timing = field(default_factory=Timing)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    spool: SpoolSettings = field(default_factory=SpoolSettings)
    vitals: Vitals = field(default_factory=Vitals)
    stacks: StackFolders | None = None
    """The folders in which a running `trainwire up` is searched; None: those of the process environment."""
    strict: bool = False
    """Whether an unreachable Redis, a taken rank or unstored messages raise errors (docs/strict.md)."""
    page_url: str | None = None
    """The address of the web page, for the link that a run prints at its start; None if it is not configured."""
    quiet: bool = False
    """Whether a run prints no link to its page at its start."""
    is_disabled: bool = False
    """Whether runs report nothing; set by a launcher whose settings are invalid."""
    provenance: frozenset[str] = frozenset()
    """Items of the provenance to collect (docs/provenance.md); none by default in settings made in code."""
    tracing: TraceSettings = field(default_factory=TraceSettings)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> TrainerSettings:
        """Read the settings from `environ`.

        Raises `ValueError` for an invalid value; the text names the variable, the value and the allowed ones.
        With TRAINWIRE_DISABLED no other variable is read: an invalid one does not end the training.
        """
        if word(environ, DISABLED_VARIABLE, ("off", "on")) == "on":
            return cls(is_disabled=True, is_captured=True, quiet=True, launch=DISABLED_VARIABLE)
        place = find_place(
            environ,
            optional_whole(environ, RANK_VARIABLE, 0, MAX_ATTEMPT),
            optional_whole(environ, WORLD_SIZE_VARIABLE, 1, MAX_WORLD_SIZE),
        )
        return cls(
            redis_url=checked_redis_url(url) if (url := environ.get(REDIS_URL_VARIABLE)) else None,
            url=checked_url(url) if (url := environ.get(URL_VARIABLE)) else None,
            token=token_of(environ),
            stacks=StackFolders.from_env(environ),
            streams_url=streams_url_of(environ),
            job_id=optional_whole(environ, JOB_ID_VARIABLE, 1, MAX_ID),
            job_name=environ.get(JOB_NAME_VARIABLE) or None,
            parent=ParentRun.from_env(environ),
            launch=find_launch(environ, place),
            attempt=_attempt(environ),
            resume_step=optional_whole(environ, RESUME_VARIABLE, 0, MAX_ID),
            rank=place.rank,
            world_size=place.world_size,
            buffer_bytes=optional_whole(environ, "TRAINWIRE_BUFFER_BYTES", LEAST_BUFFER_BYTES, MAX_ID)
            or DEFAULT_BUFFER_BYTES,
            log_lines_per_s=optional_whole(environ, "TRAINWIRE_LOG_LINES_PER_S", 1, MAX_ID),
            is_captured=bool(environ.get(CAPTURED_VARIABLE)),
            launcher_logs_outages=bool(environ.get(CAPTURED_VARIABLE)),
            launcher_folder=Path(folder) if (folder := environ.get(LAUNCHER_FOLDER_VARIABLE)) else None,
            timing=Timing.from_env(environ),
            checkpoints=CheckpointSettings.from_env(environ),
            spool=SpoolSettings.from_env(environ),
            strict=word(environ, "TRAINWIRE_STRICT", ("off", "on")) == "on",
            page_url=environ.get(PAGE_URL_VARIABLE) or None,
            quiet=word(environ, "TRAINWIRE_QUIET", ("off", "on")) == "on",
            provenance=_provenance(environ.get(PROVENANCE_VARIABLE) or "all"),
            vitals=Vitals.from_env(environ),
            tracing=TraceSettings.from_env(environ),
        )

    @classmethod
    def from_valid(cls, environ: dict[str, str]) -> tuple[TrainerSettings, list[str]]:
        """Read the settings, ignoring invalid variables.

        Return the settings, and an error text for each invalid variable. Invalid variables are removed from
        `environ`, or set to a value that disables the optional data (provenance, uploads). If one address is
        invalid, all addresses are removed: messages never go to a server that the user has not named. Raises
        `ValueError` for an error that begins with no variable.
        """
        errors: list[str] = []
        while True:
            try:
                return cls.from_env(environ), errors
            except ValueError as exc:
                text = str(exc)
            name = next((name for name in environ if text.startswith((f"{name}=", f"{name} is"))), None)
            if name is None:
                raise ValueError(text)
            is_address = name in _ADDRESSES
            kept = ": messages stay in the spool for your `trainwire up`" if is_address else ""
            errors.append(f"{text}; it is ignored{kept}")
            for each in _ADDRESSES if is_address else [name]:
                environ.pop(each, None)
            if name in _CAUTIOUS:
                environ[name] = _CAUTIOUS[name]

    @property
    def streams(self) -> str | None:
        """The configured address of the gateway, else that of the Redis with the streams, else None."""
        return self.url or self.streams_url or self.redis_url

    def with_stall_after(self, stall_after_s: float | None) -> TrainerSettings:
        """Return a copy with this `stall_after_s`; return these settings if it is None.

        Raises `ValueError` for an invalid number of seconds.
        """
        if stall_after_s is None:
            return self
        return replace(self, vitals=replace(self.vitals, stall_after_s=checked_pause_s(stall_after_s)))

    def strictly(self, strict: bool | None) -> TrainerSettings:
        """Return a copy with this value of `strict`; return these settings if it is None or runs are disabled.

        Raises `ValueError` for any other value.
        """
        if not isinstance(strict, bool | None):
            raise ValueError(f"strict={strict!r} is not True or False")  # noqa: TRY004 - as for other arguments
        return self if strict is None or self.is_disabled else replace(self, strict=strict)

    def as_launcher(self) -> TrainerSettings:
        """Return a copy for a launcher: its claims do not conflict with those of the trainers that it starts."""
        return replace(self, vitals=replace(self.vitals, is_launcher=True))

    def at(self, redis_url: str | None, url: str | None = None) -> TrainerSettings:
        """Return a copy with this address of Redis or of a gateway; return these settings if both are None.

        `redis_url` removes the gateway; `streams_url` stays.

        Raises `ValueError` if an address is invalid or both are given.
        """
        if redis_url is not None and url is not None:
            raise ValueError(
                f"url={base_of(checked_url(url, 'url'))!r} and redis_url are both given: leave one out"
            )
        if url is not None:
            return replace(self, url=checked_url(url, "url"))
        if redis_url is None:
            return self
        return replace(self, redis_url=checked_redis_url(redis_url, "redis_url"), url=None)

    def at_server(self, address: str) -> TrainerSettings:
        """Return a copy that sends to `address`, which is that of a Redis with the streams or of a gateway."""
        if is_gateway(address):
            return replace(self, url=address)
        return replace(self, streams_url=address, url=None)

    def at_stack(self, data_dir: Path | None) -> TrainerSettings:
        """Return a copy that sends to the `trainwire up` with this data folder.

        Return these settings if it is None.
        """
        if data_dir is None:
            return self
        stacks = (self.stacks or StackFolders.from_env()).at(data_dir)
        return replace(self, url=None, redis_url=None, streams_url=None, stacks=stacks)


def checked_settings(settings: object) -> TrainerSettings:
    """Return `settings`; for None, read them from the environment. Raises `ValueError` for any other object."""
    if settings is None:
        return TrainerSettings.from_env()
    if not isinstance(settings, TrainerSettings):
        raise ValueError(f"settings={settings!r} is not a TrainerSettings")  # noqa: TRY004 - as for other arguments
    return settings


def _attempt(environ: Mapping[str, str]) -> int:
    attempt = optional_whole(environ, ATTEMPT_VARIABLE, 0, MAX_ATTEMPT)
    return ATTEMPT_UNKNOWN if attempt is None else attempt


def _provenance(text: str) -> frozenset[str]:
    """Return the provenance items that `text` names: `all`, `off`, a list, or exclusions (`-diff,-user`)."""
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
