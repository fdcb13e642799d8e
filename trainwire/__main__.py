"""Entry point of the `trainwire` command."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from trainwire.cli.extras import command_hint
from trainwire.stack.errors import KILLED_BY_CTRL_C, Problem

EXIT_PROBLEM = 1
EXIT_NOT_INSTALLED = 2


def main() -> None:
    """Run the command line.

    An error that the user can correct is printed to stderr in one sentence, without a traceback; the process then
    exits with code 1, or 2 if a package is not installed. After ctrl-C the code is `KILLED_BY_CTRL_C`.
    """
    # Otherwise Python searches all objects of all modules for cycles at its exit: a third of the CPU time of most
    # commands. Nor is there anything to collect while modules are imported, which takes most of the rest.
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        # Print a question mark for a character that the terminal cannot show, instead of raising.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        _run()
    except KeyboardInterrupt:
        # Also during the imports, which take most of the first second.
        sys.exit(KILLED_BY_CTRL_C)
    finally:
        _drop_unread_output()


def _drop_unread_output() -> None:
    """Drop the rest of the output if its reader has ended (`| head`); Python would print an error of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _without_collections() -> Iterator[None]:
    """Switch the garbage collector off in the block."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _run() -> None:
    try:
        with _without_collections():
            from trainwire.cli.application import NotInstalled, build  # noqa: PLC0415 - typer comes with an extra
    except ModuleNotFoundError as exc:
        command = next((name for name in sys.argv[1:2] if not name.startswith("-")), None)
        _exit(command_hint(str(exc.name), command), EXIT_NOT_INSTALLED)
    try:
        with _without_collections():
            app = build(sys.argv[1:])
        app(prog_name="trainwire")
    except NotInstalled as exc:
        _exit(str(exc), EXIT_NOT_INSTALLED)
    except Problem as exc:
        _exit(str(exc), EXIT_PROBLEM)


def _exit(sentence: str, code: int) -> NoReturn:
    sys.stderr.write(f"trainwire: {sentence}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
