"""Formats the provenance of an attempt (command, code and machine) for `trainwire status`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

_COMMIT_CHARS: Final = 12


def provenance_lines(items: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the provenance of an attempt as pairs (name, text) to print; malformed items are left out."""
    lines = []
    for name, item, shown in _LINES:
        try:
            text = shown(items[item]) if items.get(item) else ""
        except (TypeError, ValueError, AttributeError, KeyError, IndexError):
            continue
        if text:
            lines.append((name, text))
    return lines


def _git(git: Mapping[str, Any]) -> str:
    changes = f", {git['changed_files']} changed files" if git.get("changed_files") else ""
    branch = f" on {git['branch']}" if git.get("branch") else ""
    return f"{str(git['commit'])[:_COMMIT_CHARS]}{branch}{changes}" if git.get("commit") else "no commit yet"


def _gpus(gpus: list[Mapping[str, Any]]) -> str:
    count = "" if len(gpus) == 1 else f"{len(gpus)} x "
    return f"{count}{gpus[0]['name']}, driver {gpus[0]['driver']}"


_LINES: Final[tuple[tuple[str, str, Callable[[Any], str]], ...]] = (
    ("command", "command", lambda command: shlex.join(map(str, command))),
    ("folder", "folder", str),
    ("git", "git", _git),
    ("host", "host", lambda host: str(host["name"])),
    ("python", "python", lambda python: f"{python['version']}, {python['executable']}"),
    ("gpu", "gpu", _gpus),
    ("container", "container", lambda container: str(container.get("image") or container.get("id", ""))),
)
