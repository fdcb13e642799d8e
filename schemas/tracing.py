"""Defines when traces are exported, and validates the field `traceparent` (W3C Trace Context).

Trainers and servers use the same environment variables, which OpenTelemetry defines (docs/tracing.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ENDPOINT_VARIABLE)
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"

TRACEPARENT: Final = "traceparent"
"""Name of an HTTP header, and of a field in stream entries and in the hash of a job's acknowledgements."""
TRACEPARENT_VARIABLE: Final = "TRACEPARENT"
"""The environment variable with the `traceparent` of the process that started this one."""
TRACEPARENT_CHARS: Final = 55
_MAX_CHARS: Final = 512
"""Longest value that is accepted: a later version of the format may append fields."""
_match = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<ids>(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})",
    re.ASCII,
).match


def is_exporting(environ: Mapping[str, str]) -> bool:
    """Return whether the environment names a collector for traces and does not disable their export."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = [name.strip() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",")]
    return any(map(environ.get, _ENDPOINTS)) and (exporters == [""] or "otlp" in exporters)


def export_problem(environ: Mapping[str, str]) -> str | None:
    """Return a sentence that names the variable with an unusable address or protocol; None if there is none.

    The address is not repeated, because it may contain a password.
    """
    for name in _ENDPOINTS:
        if (address := environ.get(name)) and not re.match(r"https?://[^/\s]", address):
            return f"{name} is not an address like http://localhost:4318"
    for name in filter(environ.get, _PROTOCOLS):
        if environ[name] != PROTOCOL:
            return f"{name} is {environ[name]!r}, but trainwire exports traces only as {PROTOCOL} (port 4318)"
        return None  # the first takes precedence
    return None


def checked_traceparent(value: object) -> str | None:
    """Return a `traceparent` in version 00 of its format; None if `value` is not a valid one.

    `value` comes from other programs and may be anything. For a later version, the fields of version 00 are
    returned, as the specification requires: https://www.w3.org/TR/trace-context/#versioning-of-traceparent.
    """
    if isinstance(value, bytes):
        value = value[: _MAX_CHARS + 1].decode("ascii", "replace")
    if not isinstance(value, str) or not TRACEPARENT_CHARS <= len(value) <= _MAX_CHARS:
        return None
    found = _match(value)
    if found is None:
        return None
    rest = value[TRACEPARENT_CHARS:]
    if rest and (found["version"] == "00" or not rest.startswith("-")):
        return None
    return f"00-{found['ids']}-{int(found['flags'], 16) & 3:02x}"
