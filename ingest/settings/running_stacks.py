"""Finds the servers that the same user has started with `trainwire up` on the same machine.

A running `trainwire up` keeps a record, `stack.json`, in its data folder. It also keeps a file with the path of
this folder in a registry, a folder below XDG_STATE_HOME. Both are used only if they belong to the user of this
process, are no symbolic links, and no other user can write to them. The record is used only while its process
runs, on this machine and in this network namespace, because the addresses in it are those of the loopback
interface.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec

from trainwire.ingest.process.proc_stat import START_TIME, proc_stat
from trainwire.schemas.decode_errors import DECODE_ERRORS

DATA_DIR_VARIABLE: Final = "TRAINWIRE_DATA_DIR"
RECORD_NAME: Final = "stack.json"
SECRETS_NAME: Final = "secrets.json"
ENTRY_NAME_LENGTH: Final = 16
MAX_FILE_BYTES: Final = 64 * 1024


class NoStack(Exception):  # noqa: N818 - shown to people
    """This user has no usable `trainwire up`; `command` is the command line that remedies it."""

    def __init__(self, text: str, command: str = "trainwire up") -> None:
        super().__init__(text)
        self.command = command


@dataclass(frozen=True)
class RunningStack:
    """A running `trainwire up`: its data folder, and its record with addresses, which may contain passwords."""

    data_dir: Path
    record: Mapping[str, Any] = field(repr=False)

    def text(self, name: str) -> str | None:
        """Return the string with this name from the record; None if it is absent, empty or not a string."""
        value = self.record.get(name)
        return value if isinstance(value, str) and value else None

    @property
    def streams_url(self) -> str | None:
        """The address of the Redis with the streams."""
        return self.text("streams_url") or self.text("redis_url")


@dataclass(frozen=True)
class StackFolders:
    """The folders in which a running `trainwire up` of this user is searched."""

    registry: Path
    default: Path
    """The data folder of a `trainwire up` without `--data-dir`."""
    chosen: Path | None = None
    """The data folder that the user has named, which is then the only one searched; None if none is named."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Return the folders that the XDG base directory variables in `environ` name.

        The chosen data folder is TRAINWIRE_DATA_DIR, if that is set.
        """
        named = environ.get(DATA_DIR_VARIABLE)
        return cls(
            registry=_xdg(environ, "XDG_STATE_HOME", ".local/state") / "stacks",
            default=_xdg(environ, "XDG_DATA_HOME", ".local/share"),
            chosen=_absolute(named) if named else None,
        )

    def at(self, data_dir: Path | None) -> Self:
        """Return a copy with `data_dir` as the chosen folder; return these folders if it is None."""
        return self if data_dir is None else replace(self, chosen=data_dir.expanduser().absolute())

    def find(self) -> RunningStack:
        """Return the running `trainwire up` of the chosen folder, else of the default folder, else the only one.

        Raises `NoStack` if there is none, or if several run and none of them is the default one.
        """
        if self.chosen is not None:
            record = running_record(self.chosen)
            if record is None:
                import shlex  # noqa: PLC0415 - of no use in a trainer that finds its stack

                command = f"trainwire up --data-dir {shlex.quote(str(self.chosen))}"
                raise NoStack(_state(self.chosen, f"no trainwire is running in {self.chosen}"), command)
            return RunningStack(self.chosen, record)
        found = {folder: record for folder in self.registered() if (record := running_record(folder)) is not None}
        if not found:
            raise NoStack(_state(self.default, "no trainwire is running"))
        if len(found) > 1 and self.default not in found:
            listed = ", ".join(map(str, found))
            raise NoStack(
                f"more than one trainwire is running ({listed}), and {DATA_DIR_VARIABLE} names none",
                "trainwire spool send --data-dir DIR",
            )
        folder = self.default if self.default in found else next(iter(found))
        return RunningStack(folder, found[folder])

    def registered(self) -> Iterator[Path]:
        """Yield all data folders in the registry; the `trainwire up` of some may have been killed."""
        names = []
        with suppress(OSError):
            names = sorted(name for name in os.listdir(self.registry) if len(name) == ENTRY_NAME_LENGTH)
        for name in names:
            text = own_text(self.registry / name) or ""
            if text.startswith(os.sep) and "\0" not in text:
                yield Path(text)

    def owner_of(self, redis_url: str) -> Path | None:
        """Return the data folder of the `trainwire up` that runs the Redis at `redis_url`; None for other servers.

        Only an address with the host 127.0.0.1 and a password can have one. The folder is found by this random
        password, because the port can change.
        """
        try:
            parts = urlsplit(redis_url)
        except ValueError:
            return None
        if parts.hostname != "127.0.0.1" or not parts.password:
            return None
        for folder in filter(None, (self.chosen, *self.registered(), self.default)):
            if _own_json(folder / SECRETS_NAME).get("valkey_password") == parts.password:
                return folder
        return None


def running_record(data_dir: Path) -> Mapping[str, Any] | None:
    """Return the record of the `trainwire up` that runs with this data folder; None if there is no trusted one.

    A record is not trusted if other users can write to it, or if its process does not run here.
    """
    record = _own_json(data_dir / RECORD_NAME)
    process = record.get("process")
    if not isinstance(process, dict) or not isinstance(pid := process.get("pid"), int):
        return None
    return record if is_held(data_dir) and process == process_mark(pid) else None


def is_held(data_dir: Path) -> bool:
    """Return whether a live `trainwire up` has locked its data folder."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _state(data_dir: Path, otherwise: str) -> str:
    return f"the trainwire in {data_dir} is not ready" if is_held(data_dir) else otherwise


def process_mark(pid: int) -> dict[str, Any]:
    """Return values that identify a process: its number, start time and machine; an unknown one is None."""
    return {
        "pid": pid,
        "started": _start_time(pid),
        "boot": _text_of("/proc/sys/kernel/random/boot_id") or os.uname().nodename,
        "network": _link_of("/proc/self/ns/net"),
    }


def own_text(path: Path) -> str | None:
    """Return the text (at most 64 KiB) of a file of this user that nobody else can write to; else None."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        is_private = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or not is_private:
            return None
        return os.read(descriptor, MAX_FILE_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None
    finally:
        os.close(descriptor)


def _own_json(path: Path) -> Mapping[str, Any]:
    try:
        content = msgspec.json.decode(own_text(path) or "{}")
    except DECODE_ERRORS:
        return {}
    return content if isinstance(content, dict) else {}


def _start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since the boot; None if it has ended or is unknown."""
    fields = proc_stat(pid)
    return int(fields[START_TIME]) if fields else None


def _text_of(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _link_of(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _absolute(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except (OSError, RuntimeError):  # the working folder was deleted, or there is no home
        return Path(path)


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    base = environ.get(variable) or Path(environ.get("HOME") or os.path.expanduser("~"), below_home)
    return Path(base) / "trainwire"
