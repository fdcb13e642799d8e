"""mypy and pyright, run on a user's scripts in a folder of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PYRIGHT_RULES: Final = {
    "enableTypeIgnoreComments": False,  # those are for mypy
    "reportUnnecessaryTypeIgnoreComment": "error",
    "reportUnusedExpression": "none",
}


def write_scripts(folder: Path, mode: str, **scripts: str) -> None:
    """Write scripts, and pyright's configuration with a mode ("strict", "standard")."""
    for name, script in scripts.items():
        (folder / f"{name}.py").write_text(script)
    rules = {"include": ["*.py"], "typeCheckingMode": mode, **PYRIGHT_RULES}
    (folder / "pyrightconfig.json").write_text(json.dumps(rules))


def checked(folder: Path, env: Mapping[str, str], checker: str, *arguments: str) -> str:
    """Return the output of a type checker that runs in `folder`."""
    command = [sys.executable, "-m", checker, *arguments]
    done = subprocess.run(command, cwd=folder, env=dict(env), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
