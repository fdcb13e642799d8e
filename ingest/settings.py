"""What a trainer can be told from outside: the only place of `ingest` that reads the environment."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

from schemas.messages import ATTEMPT_UNSAID, MAX_ATTEMPT, MAX_ID

JOB_ID_VARIABLE: Final = "TRAINWIRE_JOB_ID"
ATTEMPT_VARIABLE: Final = "TRAINWIRE_ATTEMPT"
CAPTURED_VARIABLE: Final = "TRAINWIRE_CAPTURED"
REDIS_URL_VARIABLE: Final = "REDIS_URL"

DEFAULT_REDIS_URL: Final = "redis://localhost:6379/0"
DEFAULT_BUFFER_BYTES: Final = 256 * 1024 * 1024
LEAST_BUFFER_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Timing:
    """How long the sender waits for what; all in seconds."""

    flush_interval_s: float = 0.05
    ack_interval_s: float = 0.2
    resend_after_s: float = 2.0
    """Messages reported missing are sent again at most this often; doubles while nothing changes."""
    probe_after_s: float = 15.0
    """So long without news, the last message is sent again to find out whether Redis lost the tail; doubles."""
    patience_limit_s: float = 120.0
    settle_s: float = 2.0
    """How long `finish` waits for the workers once everything is in Redis."""
    first_backoff_s: float = 0.1
    longest_backoff_s: float = 5.0


@dataclass(frozen=True)
class TrainerSettings:
    """Where messages go, who says them, and how much memory they may take."""

    redis_url: str = field(default=DEFAULT_REDIS_URL, repr=False)  # may hold a password
    job_id: int | None = None
    attempt: int = ATTEMPT_UNSAID
    rank: int | None = None
    buffer_bytes: int = DEFAULT_BUFFER_BYTES
    is_captured: bool = False
    timing: Timing = Timing()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> TrainerSettings:
        """Read the settings; raise `ValueError` naming the variable, its value and what is allowed."""
        return cls(
            redis_url=checked_redis_url(environ.get(REDIS_URL_VARIABLE) or DEFAULT_REDIS_URL),
            job_id=_optional_whole(environ, JOB_ID_VARIABLE, 1, MAX_ID),
            attempt=_attempt(environ),
            rank=_rank(environ),
            buffer_bytes=_optional_whole(environ, "TRAINWIRE_BUFFER_BYTES", LEAST_BUFFER_BYTES, MAX_ID)
            or DEFAULT_BUFFER_BYTES,
            is_captured=bool(environ.get(CAPTURED_VARIABLE)),
            timing=Timing(
                flush_interval_s=_seconds(
                    environ, "TRAINWIRE_FLUSH_INTERVAL_S", Timing.flush_interval_s, 0.001, 60
                ),
                settle_s=_seconds(environ, "TRAINWIRE_SETTLE_S", Timing.settle_s, 0, 600),
            ),
        )

    def at(self, redis_url: str | None) -> TrainerSettings:
        """Return these settings with another address, if one is said; raise `ValueError` when it is none."""
        return self if redis_url is None else replace(self, redis_url=checked_redis_url(redis_url, "redis_url"))


def checked_redis_url(url: str, name: str = REDIS_URL_VARIABLE) -> str:
    """Return `url` if it can be one of a Redis server, else raise `ValueError`; a password is never shown."""
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("redis", "rediss") and parts.port != 0
    except ValueError:
        is_fine = False
    if not is_fine or not _is_database(parts.path):
        shown = url.rpartition("@")[2]
        raise ValueError(
            f"{name}={shown!r} is not a Redis address: say redis://host:port/0, or rediss:// with TLS"
        )
    return url


def shown_host(redis_url: str) -> str:
    """Return host and port of an address, without user and password."""
    parts = urlsplit(redis_url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """Return `value` as a whole number of the range, else raise `ValueError` naming all of it."""
    try:
        number = least - 1 if isinstance(value, bool) else int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{name}={value!r} is not a whole number from {least} to {most}")
    return number


def _optional_whole(environ: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = environ.get(name)
    return whole_number(name, _parsed(int, text), least, most) if text else None


def _attempt(environ: Mapping[str, str]) -> int:
    said = _optional_whole(environ, ATTEMPT_VARIABLE, 0, MAX_ATTEMPT)
    return ATTEMPT_UNSAID if said is None else said


def _rank(environ: Mapping[str, str]) -> int | None:
    ours = _optional_whole(environ, "TRAINWIRE_RANK", 0, MAX_ATTEMPT)
    if ours is not None:
        return ours
    try:
        return _optional_whole(environ, "RANK", 0, MAX_ATTEMPT)
    except ValueError:  # the name is everybody's: it may mean something else here
        return None


def _seconds(environ: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    seconds = _parsed(float, text)
    if not isinstance(seconds, float) or not least <= seconds <= most:  # NaN is in no range
        raise ValueError(f"{name}={text!r} is not a number of seconds from {least} to {most}")
    return seconds


def _parsed(parse: Callable[[str], int | float], text: str) -> int | float | str:
    """Return the number, or the text itself where it is none: the range check then names it."""
    try:
        return parse(text)
    except ValueError:
        return text


def _is_database(path: str) -> bool:
    return path in ("", "/") or path[1:].isdecimal()
