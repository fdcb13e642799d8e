"""Names the user of this process, for requests that are stored with their author."""

from __future__ import annotations

import getpass


def local_user() -> str:
    """Return the name of the user of this process; `unknown` if the machine has no entry for the user's number."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
