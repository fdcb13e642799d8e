"""`trainwire top`: a live view in the terminal."""

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
from trainwire.cli.terminal import console
from trainwire.cli.top.snapshot import Snapshot, take
from trainwire.cli.top.view import render
from trainwire.stack.database import settings_for
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.connections import open_engine, open_redis, open_stream_client
from trainwire.workers.settings import Settings

RATES_OVER_S: Final = 1.0
"""For `--once`: the time over which rates are taken."""
Look = partial[Snapshot]


def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once, with rates over one second.")] = False,
    every_s: Annotated[float, seconds_option(0.5, 3600, "Seconds between two looks.", "--every")] = 2.0,
    data_dir: DataDir = None,
) -> None:
    """Show streams, sinks, workers and running jobs, anew every two seconds until ctrl-C."""
    settings = settings_for(servers(data_dir), with_redis=True)
    screen = console()
    with _looking(settings) as look:
        if once:
            before = look()
            time.sleep(RATES_OVER_S)
            screen.print(render(look(), before))
            return
        if not screen.is_terminal:
            raise Problem("`trainwire top` needs a terminal; `trainwire top --once` prints it once")
        before = look()
        with Live(render(before, None), console=screen, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                now = look()
                live.update(render(now, before), refresh=True)
                before = now


@contextmanager
def _looking(settings: Settings) -> Iterator[Look]:
    client, engine = open_redis(settings), open_engine(settings, name="trainwire-top")
    streams = open_stream_client(settings)
    try:
        yield partial(take, client, engine, settings, streams=streams)
    finally:
        client.close()
        if streams is not None:
            streams.close()
        engine.dispose()
