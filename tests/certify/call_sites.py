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
WITHOUT_CALL: Final = frozenset(
    [
        "pipeline",
        "Session",
        "close",
        "connection_pool",
        "get_encoder",
        "dispose",
        "get_connection_kwargs",
        "register_script",
        "setblocking",
        "values",
        "which",
        "disk_usage",
    ]
)
"""Methods of clients that make no call themselves, and functions of `shutil` that change nothing."""
LOCAL: Final = {
    "reads what the kernel knows of processes": (
        "fork_server.py:set_command_line",
        "keeper.py:is_stopped",
        "launches.py:_launcher_process",
        "poison_entries.py:_address_space_bytes",
        "proc_stat.py:proc_stat",
        "proc_stat.py:start_time_s",
        "stopping.py:_numbers",
    ),
    "a pipe, socket or terminal between processes of one machine": (
        "announcements.py:print_note",
        "capture.py:_Output.start_reading",
        "capture.py:_Relay.stop",
        "command.py:_is_typed_at_terminal",
        "command_output.py:_opened_pipe",
        "command_output.py:occupy_standard_descriptors",
        "fork_server.py:_report_ended",
        "fork_server.py:serve",
        "keeper.py:Keeper.close",
        "keeper.py:Output.pass_on",
        "keeper.py:main",
        "poison_entries.py:_run_child",
        "pseudo_terminal.py:Terminal.__init__",
        "relay.py:Relay._show",
        "relay.py:Relay._write_copy",
        "relay.py:main",
    ),
    "starts a program": (
        "collector.py:_output",
        "command_output.py:run_alone",
        "command_output.py:run_command",
        "keeper.py:Keeper.__init__",
        "recording.py:collected",
    ),
    "computes a signature": ("s3.py:S3Store.presign",),
}
"""Reason -> call sites whose calls reach no store and no file of ours; other tests let them fail."""


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
            return holder.removeprefix("_") in CLIENTS and name not in WITHOUT_CALL and not name[0].isupper()
    return False
