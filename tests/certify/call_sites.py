"""The functions of the product that make calls which leave the process, found in its source text."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from tests.certify.failpoints import FILE_CALLS, ROOT

FOLDERS: Final = ("ingest", "workers", "stores", "schemas/streams")
"""The folders of trainer, launcher, drain, delivery, notifier, beat, retention and deletion."""
ON_ANYTHING: Final = frozenset(
    [
        "execute",
        "executemany",
        "execute_command",
        "copy",
        "urlopen",
        "request",
        "getresponse",
        "endheaders",
        "read_bytes",
        "read_text",
        "write_bytes",
        "write_text",
        "unlink",
        "rename",
        "mkdir",
        "rmdir",
        "iterdir",
        "rglob",
        "glob",
        "touch",
        "symlink_to",
        "flock",
        "Popen",
        "send_task",
    ]
)
"""Names of methods and functions that leave the process, whatever they are called on."""
CLIENTS: Final = frozenset(["client", "redis", "streams", "requests", "shutil", "pubsub", "engine", "_engine"])
"""Names of variables that hold a client; every call on one of them leaves the process."""
WITHOUT_CALL: Final = frozenset(["pipeline", "Session", "close", "connection_pool", "get_encoder", "dispose"])
"""Methods of clients that make no call themselves."""


def call_sites() -> Iterator[str]:
    """Yield `file.py:function` of each function that makes a call out of its process, file by file.

    Folders are not part of the name, so that a move between folders changes no name.
    """
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from dict.fromkeys(site for site, _ in _calls_in(path))


def sites_of(callers: Iterable[str]) -> list[str]:
    """Return the call sites among `callers` (`folder/file.py:line`), which a failed call goes through.

    These are the functions whose own call out of the process has failed; others that are only in between are not.
    """
    found: dict[str, None] = {}
    for caller in callers:
        path, _, line = caller.rpartition(":")
        for site, lines in _calls_in(ROOT / path) if path.startswith(FOLDERS) else ():
            if int(line) in lines:
                found[site] = None
    return [*found]


@cache
def _calls_in(path: Path) -> list[tuple[str, range]]:
    """Return (call site, its lines) of all calls in a module that leave the process."""

    def visit(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, range]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from visit(child, (*names, child.name))
            else:
                if isinstance(child, ast.Call) and _leaves_process(child):
                    lines = range(child.lineno, (child.end_lineno or child.lineno) + 1)
                    yield f"{path.name}:{'.'.join(names) or '<module>'}", lines
                yield from visit(child, names)

    return [*visit(ast.parse(path.read_text()), ())]


def _leaves_process(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id=name):
            return name in ("open", "execute_all", "http_request")
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            return name in FILE_CALLS
        case ast.Attribute(value=value, attr=name):
            if name in ON_ANYTHING:
                return True
            holder = value.id if isinstance(value, ast.Name) else getattr(value, "attr", "")
            return holder.removeprefix("_") in CLIENTS and name not in WITHOUT_CALL
    return False
