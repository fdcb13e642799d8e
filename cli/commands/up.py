"""`trainwire up`: runs the whole stack in the foreground."""

from __future__ import annotations

import os
import shlex
import signal
import socket
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated
from urllib.parse import urlsplit

import typer

from trainwire.cli.invocation import own_command
from trainwire.cli.numbers import whole_option
from trainwire.cli.terminal import say
from trainwire.ingest.servers.destinations import ANY_STACK, name_of
from trainwire.ingest.servers.server_names import server_of
from trainwire.ingest.settings.running_stacks import NoStack, StackFolders
from trainwire.ingest.settings.setting_groups import default_spool_dir
from trainwire.stack.database import settings_for
from trainwire.stack.errors import KILLED_BY_CTRL_C, Problem
from trainwire.stack.folders import chosen_data_dir, default_data_dir, hold
from trainwire.stack.locate import streams_url
from trainwire.stack.recorded_settings import switch_off_absent_loki
from trainwire.stack.spool_watch import SpoolWatch
from trainwire.stack.stack import Stack, StackOptions
from trainwire.stores.local_hosts import is_loopback
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.plugin import sinks_on


def up(
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Data folder; default: trainwire in ~/.local/share."),
    ] = None,
    concurrency: Annotated[int | None, whole_option(1, 1024, "Pool processes of the worker; default: 2.")] = None,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Without Flower.")] = False,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Without the gateway.")] = False,
    no_metrics: Annotated[bool, typer.Option("--no-metrics", help="Without the Prometheus exporter.")] = False,
) -> None:
    """Run Postgres, Redis (Valkey), workers, beat, Flower, gateway and exporter until ctrl-C. The data is kept.

    If DATABASE_URL or REDIS_URL is set, that server is used instead of the embedded one.
    """
    folder = chosen_data_dir(data_dir, os.environ) or default_data_dir(os.environ)
    with hold(folder):
        no_loki = switch_off_absent_loki(os.environ)
        options = StackOptions(folder, concurrency, not no_flower, not no_gateway, not no_metrics)
        run_stack(Stack(options, os.environ, say), folder, no_loki)


def run_stack(stack: Stack, folder: Path, no_loki: str | None = None) -> None:
    """Start the stack, and restart its processes until ctrl-C stops it; a second ctrl-C kills it.

    `no_loki` is the reason why Loki is switched off, or None; it is printed.
    """
    _stop_on_signals(stack)
    spool: SpoolWatch | None = None
    is_started = False
    try:
        stack.start()
        is_started = True
        if not stack.stop_requested:
            _say_ready(stack, folder, no_loki)
            redis_url = stack.address.need_redis_url()
            streams = streams_url(redis_url, os.environ)
            spool = SpoolWatch(default_spool_dir(os.environ), streams, say, partial(_spool_names, folder, streams))
            spool.start()
        stack.watch()
    except Problem:
        # Not an error if the stop interrupted the start of a part.
        if not stack.stop_requested:
            raise
    finally:
        if stack.stop_requested:
            say("stopping (ctrl-C again kills)")
        elif is_started:
            say("stopping")
        if spool is not None:
            spool.stop()
        stack.stop()
    say(f"stopped; the data is in {folder}")


def _spool_names(folder: Path, streams: str) -> set[str]:
    """Return the names by which spools on this machine refer to this stack's server.

    A trainer that found no running stack writes ANY_STACK into its spool. This name is included if such a trainer
    would now find this stack.
    """
    try:
        is_found = StackFolders.from_env(os.environ).find().data_dir == folder
    except NoStack:
        is_found = False
    return {name_of(folder), server_of(streams), *([ANY_STACK] if is_found else [])}


def _stop_on_signals(stack: Stack) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stack.stop_requested:
            stack.kill()
            os._exit(KILLED_BY_CTRL_C)
        stack.request_stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # With `nohup` it must survive its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)


def _say_ready(stack: Stack, folder: Path, no_loki: str | None) -> None:
    address = stack.address
    shown = [_host_and_port("Postgres", address.database_url), _host_and_port("Redis", address.redis_url)]
    if address.flower_url:
        shown.append(f"Flower {address.flower_url}")
    say(f"\ntrainwire is ready: {' · '.join(shown)}")
    say(_log_rows(settings_for(address), no_loki))
    if address.metrics_url:
        say(f"Prometheus finds metrics at {address.metrics_url}")
    if address.gateway_url:
        say(f"See your trainings at {address.gateway_url}")
        if line := sending_from_elsewhere(address.gateway_url, os.environ.get("GATEWAY_HOST") or "127.0.0.1"):
            say(line)
    if stack.late:
        say(f"Not ready yet: {', '.join(stack.late)}. The address is printed as soon as it answers.")
    say("In another terminal:")
    command = own_command()
    which = "" if folder == default_data_dir(os.environ) else f" --data-dir {shlex.quote(str(folder))}"
    say(f"  {command} run{which} -- python train.py")
    say(f"  {command} status{which} last")
    say(f"  {command} logs{which} last -f")
    say(f"Data and logs: {folder}. Ctrl-C stops it.\n")


def sending_from_elsewhere(gateway_url: str, host: str) -> str | None:
    """Return a text that names the variables to export on other machines, so that trainings send to this gateway.

    Returns None if the gateway listens only on a loopback address.
    """
    if is_loopback(host):
        return None
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
    port = urlsplit(gateway_url).port
    shown = f"[{name}]" if ":" in name else name
    return (
        f"Trainings on other machines: export TRAINWIRE_URL=http://{shown}:{port} (or https, with a proxy before "
        "it), and TRAINWIRE_TOKEN from `trainwire token create --trainer --name 'NAME*'`"
    )


def _log_rows(settings: Settings, no_loki: str | None) -> str:
    sinks = [sink for sink in sinks_on(settings) if sink.kind == "logs"]
    if no_loki is not None:
        also = "".join(f", and go to {sink.title}" for sink in sinks)
        return (
            f"Loki is off: {no_loki}. Log rows stay in Postgres{also}. To switch Loki on, start it there or set "
            "LOKI_URL, and start `trainwire up` again; it then delivers the earlier rows, too"
        )
    if not sinks:
        return "Log rows end in Postgres (LOKI_ENABLED is false)"
    hint = f" (LOKI_URL is {settings.loki_url}; LOKI_ENABLED=false: not to Loki)" if settings.loki_enabled else ""
    return f"Log rows go to {' and '.join(sink.title for sink in sinks)}{hint}"


def _host_and_port(name: str, url: str | None) -> str:
    # Without user and password.
    return f"{name} {(url or '').rpartition('@')[2].rpartition('://')[2].split('/')[0]}"
