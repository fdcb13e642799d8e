"""Options that several commands have in common, and JSON output."""

from __future__ import annotations

import json
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from trainwire.cli.numbers import whole
from trainwire.ingest.settings.variables import URL_VARIABLE
from trainwire.schemas.non_finite import shown_value
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.streams.redis_urls import shown_url
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stack.errors import Problem
from trainwire.stack.locate import Address, adopt, locate
from trainwire.stores.local_hosts import is_loopback

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of a running stack; takes precedence over the environment."),
]


SINK_NAMES = " or ".join([", ".join([*SINKS][:-1]), [*SINKS][-1]])
job_number = whole(1, MAX_ID, "the number of a job")
JobId = Annotated[int, typer.Argument(metavar="JOB", parser=job_number, help="The job's number.")]
JobReference = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Number or name, the beginning of either, the number's last digits, or `last`."
    ),
]
JobReferences = Annotated[list[str], typer.Argument(metavar="JOB...", help="Numbers or names of jobs, or `last`.")]
Sink = Annotated[str, typer.Option("--sink", metavar="SINK", help=f"The store: {SINK_NAMES}.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def servers(data_dir: Path | None) -> Address:
    """Return the addresses of the servers to use; settings of a running stack are copied to `os.environ`."""
    address = locate(data_dir, os.environ)
    if data_dir is None and not os.environ.get("DATABASE_URL"):
        _check_no_other_gateway(address)
    adopt(address.settings, os.environ)
    return address


def _check_no_other_gateway(address: Address) -> None:
    """Raise `Problem` if TRAINWIRE_URL names another server than the running stack at `address`.

    Trainers and `Client` use TRAINWIRE_URL then: the jobs of the stack would be mistaken for theirs.
    """
    url = os.environ.get(URL_VARIABLE)
    if not url or address.data_dir is None:
        return
    named, own = urlsplit(url), urlsplit(address.gateway_url or "")
    is_own = named.port == own.port and is_loopback(named.hostname or "")
    if not is_own:
        raise Problem(
            f"{URL_VARIABLE}={shown_url(url)} names a gateway, and this command reads from Postgres: set "
            f"DATABASE_URL to its Postgres, or write --data-dir {shlex.quote(str(address.data_dir))} for the "
            "trainwire that runs here"
        )


def write_json(document: object) -> None:
    """Print `document` as JSON; times are ISO 8601, and NaN and infinities are strings such as "NaN"."""
    sys.stdout.write(json.dumps(plain(document), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Convert `value` to types that JSON can represent: a struct becomes a dictionary, a time becomes ISO 8601.

    NaN and infinities become texts. Values of other types are returned unchanged.
    """
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return shown_value(value)
