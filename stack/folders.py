"""The data folder of a stack: its lock, and the file in which commands and trainers find the running stack."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from trainwire.ingest.settings.running_stacks import (
    DATA_DIR_VARIABLE,
    ENTRY_NAME_LENGTH,
    RECORD_NAME,
    StackFolders,
    is_held,
    process_mark,
    running_record,
)
from trainwire.stack.errors import Problem
from trainwire.stack.persisted_config import write_private

LOCK_TIMEOUT_S: Final = 0.5
"""Seconds for which `up` retries to lock the folder: `is_held` in another process locks it for a moment."""


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return the data folder that is used if neither `--data-dir` nor the environment sets one."""
    return StackFolders.from_env(environ).default


def chosen_data_dir(data_dir: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the folder set by `--data-dir` or else by the environment; None if neither is set."""
    named = data_dir or environ.get(DATA_DIR_VARIABLE)
    return Path(named).expanduser().absolute() if named else None


@contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Lock the data folder during the block; create it if necessary.

    Raises `Problem` if that fails, or, after LOCK_TIMEOUT_S seconds, with the owner's process id if another
    process has locked the folder.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise Problem(
            f"{data_dir} cannot be a data folder: {exc.strerror}; choose another with --data-dir"
        ) from exc
    try:
        if not _lock(descriptor):
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise Problem(
                f"trainwire is running already in {data_dir} (pid {owner}): use it, stop it, "
                "or choose another folder with --data-dir"
            )
        # Removes the addresses that a killed owner has left.
        _stack_path(data_dir).unlink(missing_ok=True)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def publish(data_dir: Path, stack: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Write the file by which commands find the running stack, and register its data folder for this user.

    The file has the addresses and settings in `stack`, and the id of this process as the owner.
    """
    record = {**stack, "process": process_mark(os.getpid())}
    write_private(_stack_path(data_dir), json.dumps(record, indent=1))
    entry = _registry_entry(data_dir, environ)
    entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(entry, str(data_dir))


def withdraw(data_dir: Path, environ: Mapping[str, str]) -> None:
    """Delete the file by which commands find the stack, and its entry in the user's registry of stacks."""
    _stack_path(data_dir).unlink(missing_ok=True)
    _registry_entry(data_dir, environ).unlink(missing_ok=True)


def published(data_dir: Path) -> dict[str, Any] | None:
    """Return the addresses and settings that the stack in `data_dir` has recorded.

    Returns None if the stack is not running, or not ready yet.
    """
    if not is_held(data_dir):
        return None
    try:
        stack = json.loads(_stack_path(data_dir).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return stack if isinstance(stack, dict) else None


def running_data_dirs(environ: Mapping[str, str]) -> list[Path]:
    """Return the data folders of this user's stacks that run on this machine and are registered.

    A stack registers itself once its workers have started, and removes its entry when it is stopped. One that
    starts again after it was killed is still registered.
    """
    return [folder for folder in StackFolders.from_env(environ).registered() if _is_of_this_machine(folder)]


def _is_of_this_machine(data_dir: Path) -> bool:
    return is_held(data_dir) and (not _stack_path(data_dir).exists() or running_record(data_dir) is not None)


def _lock(descriptor: int) -> bool:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _stack_path(data_dir: Path) -> Path:
    return data_dir / RECORD_NAME


def _registry_entry(data_dir: Path, environ: Mapping[str, str]) -> Path:
    name = hashlib.sha256(str(data_dir).encode()).hexdigest()[:ENTRY_NAME_LENGTH]
    return StackFolders.from_env(environ).registry / name
