"""Writes the lower part of docs/cli.md from the commands: `python docs/site/cli.py`. A test compares the two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from trainwire.cli.application import build

PAGE = Path(__file__).parents[1] / "cli.md"
MARK = "<!-- below: written by `python docs/site/cli.py` -->\n"
WIDTH = 100


def page() -> str:
    """Return the page as it should be: its own introduction, and a section for each command."""
    introduction, _, _ = PAGE.read_text().partition(MARK)
    root = cast("TyperGroup", get_command(build([])))
    return introduction + MARK + "".join(_sections(root, typer.Context(root, info_name="trainwire")))


def _sections(group: TyperGroup, context: typer.Context) -> Iterator[str]:
    for name, command in group.commands.items():
        own = typer.Context(command, info_name=name, parent=context, terminal_width=WIDTH, max_content_width=WIDTH)
        yield f"\n## {own.command_path}\n\n```\n{command.get_help(own)}\n```\n"
        if isinstance(command, TyperGroup):
            yield from _sections(command, own)


if __name__ == "__main__":
    PAGE.write_text(page())
