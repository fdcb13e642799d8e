"""PostgreSQL refuses to run as root: as root it runs as `nobody`, in a folder that keeps its place."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from trainwire.stack.errors import Problem


def is_root() -> bool:
    """Tell whether this process runs as root."""
    return os.geteuid() == 0


def unprivileged(command: list[str]) -> list[str]:
    """Return `command` so that it runs as `nobody` where we are root; elsewhere as it is.

    The one capability it keeps is to pass through our parent folders (/root is closed to others), so that no
    permission of any folder has to be changed.
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
    """Make `folder` belong to the user that `unprivileged` runs commands as."""
    folder.chmod(0o700)
    if is_root():
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
