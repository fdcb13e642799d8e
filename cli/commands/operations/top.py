"""`trainwire top`: shows the state of the system in the terminal, refreshed periodically."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Final

import typer
from rich.live import Live

from trainwire.cli.commands.options import DataDir, servers
from trainwire.cli.numbers import seconds_option
from trainwire.cli.redis_clients import redis_clients
from trainwire.cli.terminal import console
from trainwire.cli.top.snapshot import Snapshot, take
from trainwire.cli.top.view import render
from trainwire.stack.database import settings_for
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.settings import Settings

RATES_OVER_S: Final = 1.0
"""Seconds between the two snapshots from which --once computes rates."""
TakeSnapshot = partial[Snapshot]


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot, with rates over one second.")] = False,
    every_s: Annotated[float, seconds_option(0.5, 3600, "Seconds between two snapshots.", "--every")] = 2.0,
    data_dir: DataDir = None,
) -> None:
    """Show streams, sinks, workers and running jobs, refreshed every two seconds (--every) until ctrl-C."""
    settings = settings_for(servers(data_dir), with_redis=True)
    screen = console()
    with _snapshots(settings) as take_snapshot:
        if once:
            before = take_snapshot()
            time.sleep(RATES_OVER_S)
            screen.print(render(take_snapshot(), before))
            return
        if not screen.is_terminal:
            raise Problem("`trainwire top` needs a terminal; `trainwire top --once` prints one snapshot")
        before = take_snapshot()
        with Live(render(before, None), console=screen, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                now = take_snapshot()
                live.update(render(now, before), refresh=True)
                before = now


@contextmanager
def _snapshots(settings: Settings) -> Iterator[TakeSnapshot]:
    engine = open_engine(settings, name="trainwire-top")
    try:
        with redis_clients(settings) as (client, streams):
            yield partial(take, client, engine, settings, streams=streams)
    finally:
        engine.dispose()
