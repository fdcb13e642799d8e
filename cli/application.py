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
    "jobs": "trainwire.cli.commands.jobs.jobs:jobs",
    "status": "trainwire.cli.commands.jobs.status:status",
    "logs": "trainwire.cli.commands.jobs.logs:logs",
    "metrics": "trainwire.cli.commands.jobs.metrics:metrics",
    "mlflow": "trainwire.cli.commands.jobs.mlflow:mlflow",
    "checkpoints": "trainwire.cli.commands.jobs.checkpoints:checkpoints",
    "import": "trainwire.cli.commands.jobs.import_:app",
    "export": "trainwire.cli.commands.jobs.export:export",
    "compare": "trainwire.cli.commands.jobs.compare:compare",
    "open": "trainwire.cli.commands.jobs.page:open_page",
    "rename": "trainwire.cli.commands.jobs.edit:rename",
    "note": "trainwire.cli.commands.jobs.edit:note",
    "tag": "trainwire.cli.commands.jobs.edit:tag",
    "archive": "trainwire.cli.commands.jobs.edit:archive",
    "stop": "trainwire.cli.commands.jobs.stop:stop",
    "delete": "trainwire.cli.commands.jobs.delete:delete",
    "retention": "trainwire.cli.commands.operations.retention:retention",
    "deliveries": "trainwire.cli.commands.operations.deliveries:app",
    "reconcile": "trainwire.cli.commands.operations.reconcile:reconcile",
    "replay": "trainwire.cli.commands.operations.deliveries:replay",
    "verify": "trainwire.cli.commands.operations.verify:verify",
    "spool": "trainwire.cli.commands.operations.spool:app",
    "alerts": "trainwire.cli.commands.operations.alerts:alerts",
    "alert": "trainwire.cli.commands.operations.alerts:app",
    "dead-letters": "trainwire.cli.commands.operations.dead_letters:app",
    "token": "trainwire.cli.commands.operations.token:app",
    "mcp": "trainwire.cli.commands.mcp:mcp",
    "top": "trainwire.cli.commands.operations.top:top",
    "doctor": "trainwire.cli.commands.operations.doctor:doctor",
    "migrate": "trainwire.cli.commands.operations.database:migrate",
    "env": "trainwire.cli.commands.operations.database:env",
}
# All options after the COMMAND of `trainwire run` belong to that command.
RUN_CONTEXT: Final = {"ignore_unknown_options": True, "allow_interspersed_args": False}


class NotInstalled(Problem):
    """A command needs a package that is not installed; the message names the optional extra with it."""


def build(arguments: Sequence[str]) -> typer.Typer:
    """Return the typer application with the command that the first argument names, else with all commands.

    With `--version` alone it has none: importing all commands takes two seconds.
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
