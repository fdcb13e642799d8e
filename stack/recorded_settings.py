"""Collects the environment variables that `trainwire up` records for other commands; detects a missing Loki."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Final

import urllib3
from pydantic_settings import BaseSettings
from urllib3.exceptions import HTTPError

from trainwire.stores.settings import StoreSettings
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.plugin import sink_settings

LIBRARY_PREFIXES: Final = ("AWS_", "MLFLOW_")
"""Prefixes of variables that boto3 and MLflow's client read from the environment."""
SERVERS: Final = frozenset({"DATABASE_URL", "REDIS_URL"})
"""Variables that are recorded as addresses of the stack instead, because its servers may be embedded ones."""
LOKI_TIMEOUT: Final = urllib3.Timeout(connect=1.0, read=2.0)
LOKI_PATH: Final = "/loki/api/v1/status/buildinfo"
LOKI_BUILD: Final = ("version", "revision", "branch")
LOKI_ANSWER_BYTES: Final = 64 * 1024


def recorded_settings(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the environment variables that the workers read, with None for a setting of ours that is not set.

    Those of libraries (LIBRARY_PREFIXES) are included if they are set; DATABASE_URL and REDIS_URL are not.
    """
    kinds: list[type[BaseSettings]] = [Settings, *sink_settings()]
    fields = [name for kind in kinds for name in kind.model_fields]
    ours = dict.fromkeys(sorted({name.upper() for name in fields} - SERVERS))
    libraries = {name for name in environ if name.startswith(LIBRARY_PREFIXES)}
    return {name: environ.get(name) for name in (*ours, *sorted(libraries))}


def switch_off_absent_loki(environ: MutableMapping[str, str]) -> str | None:
    """Set LOKI_ENABLED to false if neither it nor LOKI_URL is set, and no Loki responds at the default URL.

    Returns the reason in one sentence; None if nothing was changed.
    """
    if environ.get("LOKI_URL") or environ.get("LOKI_ENABLED"):
        return None
    url = str(StoreSettings.model_fields["loki_url"].default)
    reason = loki_absence(url)
    if reason is not None:
        environ["LOKI_ENABLED"] = "false"
    return reason


def loki_absence(url: str) -> str | None:
    """Return the reason why the server at `url` is not a Loki, or None if it is one.

    A Loki returns the build information of Loki's API; another program may listen there and accept every path.
    """
    try:
        with urllib3.PoolManager(timeout=LOKI_TIMEOUT, retries=False) as pool:
            answer = pool.request("GET", url + LOKI_PATH, redirect=False, preload_content=False)
            content = answer.read(LOKI_ANSWER_BYTES) if answer.status == 200 else b""
            answer.close()
    except HTTPError:
        return f"no server answers at {url}"
    try:
        build = json.loads(content)
    except (ValueError, RecursionError):
        build = None
    if isinstance(build, dict) and all(isinstance(build.get(name), str) for name in LOKI_BUILD):
        return None
    return f"the server at {url} is not Loki"
