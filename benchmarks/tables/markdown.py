"""Prints tables in Markdown, line by line."""

from __future__ import annotations


def show(line: str) -> None:
    """Print a line and flush stdout, because a benchmark takes minutes."""
    print(line, flush=True)


def begin_table(*columns: str) -> None:
    """Print the header of a Markdown table."""
    show(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
