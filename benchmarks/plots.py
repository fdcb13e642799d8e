"""Draws plots of the figures of benchmarks as SVG: `python -m benchmarks.plots FOLDER/figures.json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Plot: TypeAlias = Callable[[Rows], Figure]

WANTED: Final[Mapping[str, Any]] = {"color": "black", "linestyle": ":", "linewidth": 1}
"""Style of a line at a wanted value."""
STYLE: Final[dict[Any, Any]] = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=["#2563eb", "#f59e0b", "#94a3b8", "#10b981"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",  # texts remain texts
    "svg.hashsalt": "trainwire",  # the same figures give the same file
}


def draw(figures: Path, folder: Path) -> None:
    """Draw all plots whose tables are in `figures`, a file of `Report.write`, into SVG files in `folder`."""
    tables = json.loads(figures.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, (table, plot) in PLOTS.items():
            if table in tables:
                plot(tables[table]["rows"]).savefig(folder / f"{name}.svg", metadata={"Date": None})


def live_trainers(rows: Rows) -> Figure:
    """Plot latency and throughput over the number of live trainers."""
    figure, (latency, rate) = _panels(2)
    trainers = [row["trainers"] for row in rows]
    for name in ("p50, s", "p95, s", "worst, s"):
        latency.plot(trainers, [row[name] for row in rows], marker="o", label=name.removesuffix(", s"))
    latency.axhline(2, label="wanted p95", **WANTED)
    latency.set(xscale="log", yscale="log", xlabel="live trainers", ylabel="from the line to its row, s")
    for name, label in (("lines and points/s", "made"), ("stored/s", "stored while they run")):
        rate.plot(trainers, [row[name] for row in rows], marker="o", label=label)
    rate.set(xscale="log", yscale="log", xlabel="live trainers", ylabel="lines and points/s")
    for panel in (latency, rate):
        panel.set_xticks(trainers, [f"{count:,}" for count in trainers], fontsize=7)
        panel.minorticks_off()
        panel.legend()
    return figure


def ratios_to_copy(rows: Rows) -> Figure:
    """Plot lines/s of the drain beside those of COPY, and their ratios, over the lines of a message."""
    figure, (rates, ratios) = _panels(2)
    sizes = [f"{row['lines a message']:,}" for row in rows]
    columns = {
        "drain": "lines/s",
        "COPY, a commit per message": "COPY by message, lines/s",
        "COPY, transactions of the drain": "COPY by transaction, lines/s",
    }
    _bars(rates, sizes, {label: [row[name] for row in rows] for label, name in columns.items()}, "{:,.0f}")
    rates.set(yscale="log", xlabel="lines a message", ylabel="lines/s")
    names = {
        "to COPY by message": "ratio to COPY by message",
        "to COPY by transaction": "ratio to COPY by transaction",
    }
    for label, name in names.items():
        ratios.plot(sizes, [row[name] for row in rows], marker="o", label=label)
    ratios.axhline(1, label="COPY", **WANTED)
    ratios.set(yscale="log", xlabel="lines a message", ylabel="lines/s of the drain / of COPY")
    for panel in (rates, ratios):
        panel.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def charts_beside_mlflow(rows: Rows) -> Figure:
    """Plot the milliseconds of each request for charts, of trainwire and of MLflow."""
    figure, (panel,) = _panels(1)
    (request,) = (name for name in rows[0] if name.startswith("request"))
    series = {name: [row[name] for row in rows] for name in ("trainwire", "MLflow (SQLite)")}
    _bars(panel, [row[request].replace(", ", "\n") for row in rows], series, "{:.0f}")
    panel.set(yscale="log", ylabel="ms", xlabel=request)
    panel.legend()
    return figure


def same_work(rows: Rows) -> Figure:
    """Plot the values/s, and the CPU time of a value, of each tracker."""
    figure, (rates, costs) = _panels(2)
    names = [row["tracker"].replace("-", "\n") for row in rows]
    _bars(rates, names, {"values/s": [row["values/s"] for row in rows]}, "{:,.0f}")
    rates.set(yscale="log", ylabel="values/s, with the last call")
    cpu = {
        label: [1e6 * row[f"CPU of the {label}, s"] / row["values"] for row in rows]
        for label in ("training", "server")
    }
    _bars(costs, names, cpu, "{:,.0f}")
    costs.set(ylabel="CPU of a value, µs")
    costs.legend()
    return figure


def reads(rows: Rows) -> Figure:
    """Plot the median and the p95 of each kind of read."""
    figure = Figure(figsize=(8, 0.22 * len(rows) + 1), layout="constrained")
    panel = figure.subplots()
    names = [row["read"] for row in reversed(rows)]
    for shade, name in (("#bfdbfe", "p95"), ("#2563eb", "median")):
        panel.barh(names, [row[name] for row in reversed(rows)], color=shade, label=name)
    panel.axvline(rows[0]["wanted p95"], label="wanted p95", **WANTED)
    panel.set(xlabel="ms, while 5,000 lines/s come in")
    panel.legend()
    return figure


PLOTS: Final[Mapping[str, tuple[str, Plot]]] = {
    "trainers": ("trainers", live_trainers),
    "copy": ("logs", ratios_to_copy),
    "charts": ("charts beside MLflow", charts_beside_mlflow),
    "trackers": ("trackers", same_work),
    "reading": ("reading", reads),
}
"""Name of the SVG file -> name of its table, and the function that draws it."""


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _bars(panel: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float]], shown: str) -> None:
    """Draw a group of bars for each name in `groups`, one for each series, with their values above them."""
    width = 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        places = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        bars = panel.bar(places, values, width, label=label)
        panel.bar_label(bars, fmt=shown, fontsize=5, padding=1)
    panel.set_xticks(range(len(groups)), groups, fontsize=7)


def main() -> None:
    """Draw the plots beside the file of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    figures = parser.parse_args().figures
    draw(figures, figures.parent)


if __name__ == "__main__":
    main()
