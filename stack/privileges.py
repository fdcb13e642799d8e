"""Runs PostgreSQL, which refuses to run as root, as the user `nobody` if this process is root."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from trainwire.stack.errors import Problem


def is_root() -> bool:
    """Return whether this process runs as root."""
    return os.geteuid() == 0


def unprivileged(command: list[str]) -> list[str]:
    """Return `command`, wrapped in `setpriv` to run as `nobody` if this process is root.

    It keeps one capability, dac_override, to reach the data folder below folders that are closed to others
    (/root), so that no permissions have to be changed.
    """
    if not is_root():
        return command
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise Problem(
            "PostgreSQL does not run as root and `setpriv` is missing: run as a normal user, or install util-linux"
        )
    nobody = pwd.getpwnam("nobody")
    return [
        setpriv,
        f"--reuid={nobody.pw_uid}",
        f"--regid={nobody.pw_gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        *command,
    ]


def give_to_unprivileged(folder: Path) -> None:
    """Make the user of `unprivileged` commands the owner of `folder`."""
    folder.chmod(0o700)
    if is_root():
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
