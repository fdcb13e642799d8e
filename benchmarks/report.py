"""Prints tables in Markdown row by row, and keeps their figures for a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

Value: TypeAlias = str | float | None

TEXT: Final = "{}"
WHOLE: Final = "{:,.0f}"
TENTHS: Final = "{:.1f}"
HUNDREDTHS: Final = "{:.2f}"
MILLISECONDS: Final = "{:.0f} ms"


@dataclass(frozen=True)
class Table:
    """A table of figures; `columns` maps the title of each column to the format of its values."""

    columns: Mapping[str, str]
    rows: list[tuple[Value, ...]] = field(default_factory=list)

    def add(self, *values: Value) -> None:
        """Add a row, and print it at once, because a benchmark takes minutes. None is printed as an empty cell."""
        self.rows.append(values)
        cells = zip(self.columns.values(), values, strict=True)
        shown = [
            "" if value is None else str(value) if isinstance(value, str) else pattern.format(value)
            for pattern, value in cells
        ]
        show(f"| {' | '.join(shown)} |")


class Report:
    """The tables of one run, by name.

    Args:
        machine: the hardware and the versions of the software under test.
        scale: the share of the usual amounts.
    """

    def __init__(self, machine: str, scale: float) -> None:
        self.machine = machine
        self.scale = scale
        self._tables: dict[str, tuple[Table, dict[str, Any]]] = {}

    def table(self, name: str, columns: Mapping[str, str]) -> Table:
        """Begin the table `name`, and print its header."""
        began = {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "load": round(os.getloadavg()[0], 1)}
        table = Table(columns)
        self._tables[name] = table, began
        show(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        return table

    def write(self, path: Path) -> None:
        """Write all tables into a JSON file (docs/benchmarks.md describes it).

        Tables of an earlier run that this run has not measured remain in the file.
        """
        figures = json.loads(path.read_text()) if path.exists() else {}
        for name, (table, began) in self._tables.items():
            rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            figures[name] = {"machine": self.machine, "scale": self.scale, **began, "rows": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(sorted(figures.items())), indent=1, ensure_ascii=False) + "\n")


def show(line: str) -> None:
    """Print a line and flush stdout, because a benchmark takes minutes."""
    print(line, flush=True)
