"""Determines how the user starts `trainwire`, for commands that are printed to be copied."""

from __future__ import annotations

import os
import shlex
import shutil
import sys


def own_command() -> str:
    """Return the command of this `trainwire` for a shell in any folder.

    It is the name if PATH leads to this program, else the absolute path.
    """
    program = os.path.abspath(sys.argv[0] if sys.argv else "")
    if os.path.basename(program) == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m trainwire"
    found = shutil.which("trainwire")
    if found is not None and os.path.isabs(found) and os.path.realpath(found) == os.path.realpath(program):
        return "trainwire"
    return shlex.quote(program)
