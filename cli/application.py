"""The table of the commands of `trainwire`. Only the module of the command that the user runs is imported."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from trainwire.cli.extras import command_hint
from trainwire.cli.terminal import say
from trainwire.stack.errors import Problem

COMMANDS: Final = {
    "up": "trainwire.cli.commands.up:up",
    "demo": "trainwire.cli.commands.demo:demo",
    "run": "trainwire.cli.commands.run:run",
    "jobs": "trainwire.cli.commands.jobs:jobs",
    "status": "trainwire.cli.commands.jobs:status",
    "logs": "trainwire.cli.commands.logs:logs",
    "metrics": "trainwire.cli.commands.metrics:metrics",
    "mlflow": "trainwire.cli.commands.mlflow:mlflow",
    "checkpoints": "trainwire.cli.commands.checkpoints:checkpoints",
    "import": "trainwire.cli.commands.import_:app",
    "export": "trainwire.cli.commands.export:export",
    "compare": "trainwire.cli.commands.edit:compare",
    "open": "trainwire.cli.commands.edit:open_page",
    "rename": "trainwire.cli.commands.edit:rename",
    "note": "trainwire.cli.commands.edit:note",
    "tag": "trainwire.cli.commands.edit:tag",
    "archive": "trainwire.cli.commands.edit:archive",
    "stop": "trainwire.cli.commands.stop:stop",
    "delete": "trainwire.cli.commands.delete:delete",
    "retention": "trainwire.cli.commands.retention:retention",
    "deliveries": "trainwire.cli.commands.deliveries:app",
    "reconcile": "trainwire.cli.commands.reconcile:reconcile",
    "replay": "trainwire.cli.commands.deliveries:replay",
    "verify": "trainwire.cli.commands.verify:verify",
    "spool": "trainwire.cli.commands.spool:app",
    "alerts": "trainwire.cli.commands.alerts:alerts",
    "alert": "trainwire.cli.commands.alerts:app",
    "dead-letters": "trainwire.cli.commands.dead_letters:app",
    "token": "trainwire.cli.commands.token:app",
    "mcp": "trainwire.cli.commands.mcp:mcp",
    "top": "trainwire.cli.commands.top:top",
    "doctor": "trainwire.cli.commands.doctor:doctor",
    "migrate": "trainwire.cli.commands.database:migrate",
    "env": "trainwire.cli.commands.database:env",
}
# All options after the COMMAND of `trainwire run` belong to that command.
RUN_CONTEXT: Final = {"ignore_unknown_options": True, "allow_interspersed_args": False}


class NotInstalled(Problem):
    """A command needs a package that is not installed; the message names the optional extra with it."""


def build(arguments: Sequence[str]) -> typer.Typer:
    """Return the typer application with the command that the first argument names, or with all commands.

    Importing all commands takes two seconds, which `--version` need not wait for.
    """
    app = typer.Typer(
        name="trainwire",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Durable, live logging for machine-learning training runs.",
    )
    app.callback()(_options)
    named = [name for name in arguments[:1] if name in COMMANDS]
    for name in () if arguments[:1] == ["--version"] else named or COMMANDS:
        _add(app, name)
    return app


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        say(f"trainwire {importlib.metadata.version('trainwire')}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        # Eager, with a callback: it runs before typer reports the missing command.
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
    ] = False,
) -> None:
    return


def _add(app: typer.Typer, name: str) -> None:
    module, _, attribute = COMMANDS[name].partition(":")
    try:
        command: Any = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] == "trainwire":
            raise
        app.command(name, context_settings=RUN_CONTEXT)(_stand_in(command_hint(str(exc.name), name)))
        return
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name, context_settings=RUN_CONTEXT if name == "run" else {})(command)


def _stand_in(sentence: str) -> Any:
    def not_installed(_arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        raise NotInstalled(sentence)

    not_installed.__doc__ = f"Not installed: {sentence.partition(': ')[2]}."
    return not_installed
