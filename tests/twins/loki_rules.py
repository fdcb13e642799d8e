"""The refusals of Loki 3.7, with its texts and its documented limits (limits_config)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

SECOND_NS = 10**9
HOUR_NS = 3600 * SECOND_NS
MAX_LISTED = 10  # -ingester.max-ignored-stream-errors
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
SERVICE_NAME = "service_name"
SERVICE_SOURCES = (
    "service",
    "app",
    "application",
    "app_name",
    "name",
    "app_kubernetes_io_name",
    "container",
    "container_name",
    "k8s_container_name",
    "component",
    "workload",
    "job",
    "k8s_job_name",
)

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Limits:
    """The limits of a Loki; the defaults are those of Loki 3."""

    max_age_ns: int = 7 * 24 * HOUR_NS
    max_ahead_ns: int = 600 * SECOND_NS
    max_behind_ns: int = HOUR_NS
    max_line_bytes: int = 256 * 1024
    max_labels: int = 15
    max_label_name_bytes: int = 1024
    max_label_value_bytes: int = 2048
    max_metadata_bytes: int = 64 * 1024
    max_metadata_count: int = 128
    max_body_bytes: int = 100 * 1024 * 1024
    max_message_bytes: int = 4 * 1024 * 1024  # grpc_server_max_recv_msg_size, from distributor to ingester
    max_query_entries: int = 5000
    max_answer_bytes: int = 4 * 1024 * 1024  # grpc_server_max_send_msg_size, from ingester to querier
    max_query_ns: int = 721 * HOUR_NS
    max_chunk_span_ns: int = 2 * HOUR_NS  # max_chunk_age
    max_chunk_idle_ns: int = 1800 * SECOND_NS  # chunk_idle_period
    unwritten_seen_ns: int = 9660 * SECOND_NS  # query_store_max_look_back_period, as a single binary derives it
    deletion: Literal["off", "disabled", "filter-and-delete"] = "off"
    """off: the compactor has no retention_enabled, and so no delete API; else the tenant's deletion_mode."""
    discovers_service_name: bool = True
    discovers_level: bool = True
    metadata_tells_lines_apart: bool = True  # since 3.7.0 (grafana/loki#21039); before, equal lines merged


def config(limits: Limits) -> str:
    """Return the limits as `/config` shows them, in YAML."""
    minutes, seconds = divmod(limits.unwritten_seen_ns // SECOND_NS, 60)
    return (
        f"ingester:\n  query_store_max_look_back_period: {minutes // 60}h{minutes % 60}m{seconds}s\n"
        "schema_config:\n  configs:\n  - object_store: filesystem\n"
        f"compactor:\n  retention_enabled: {str(limits.deletion != 'off').lower()}\n"
        "limits_config:\n  allow_structured_metadata: true\n  unordered_writes: true\n"
    )


def label_text(labels: Labels) -> str:
    """Write labels as Loki does, sorted."""
    return "{" + ", ".join(f'{name}="{_quoted(labels[name])}"' for name in sorted(labels)) + "}"


def stream_labels(labels: Labels, limits: Limits) -> dict[str, str]:
    """Return the labels a stream gets: none that are empty, and the service name Loki derives."""
    kept = {name: value for name, value in labels.items() if value}
    if limits.discovers_service_name and SERVICE_NAME not in kept:
        kept[SERVICE_NAME] = next((kept[name] for name in SERVICE_SOURCES if name in kept), "unknown_service")
    return kept


def labels_refusal(labels: Labels, limits: Limits) -> str | None:
    """Return the reason for which a stream is refused for its labels, None if it is accepted."""
    if not labels:
        return "error at least one label pair is required per stream"
    stream, count = label_text(labels), len(labels) - (SERVICE_NAME in labels)
    if count > limits.max_labels:
        return f"entry for stream '{stream}' has {count} label names; limit {limits.max_labels}"
    for name in sorted(labels):
        if size(name) > limits.max_label_name_bytes:
            return f"stream '{stream}' has label name too long: '{name}'"
        if size(labels[name]) > limits.max_label_value_bytes:
            return f"stream '{stream}' has label value too long: '{labels[name]}'"
    return None


def entry_refusal(ts_ns: int, line: str, stream: str, now_ns: int, limits: Limits) -> str | None:
    """Return the reason for which the distributor refuses an entry for its time or length, None if accepted."""
    if ts_ns < now_ns - limits.max_age_ns:
        oldest = rfc3339(now_ns - limits.max_age_ns)
        return (
            f"entry for stream '{stream}' has timestamp too old: {rfc3339(ts_ns)}, "
            f"oldest acceptable timestamp is: {oldest}"
        )
    if ts_ns > now_ns + limits.max_ahead_ns:
        return f"entry for stream '{stream}' has timestamp too new: {rfc3339(ts_ns)}"
    if 4 * len(line) > limits.max_line_bytes < size(line):
        return (
            f"max entry size '{limits.max_line_bytes}' bytes exceeded for stream '{stream}' "
            f"while adding an entry with length '{size(line)}' bytes"
        )
    return None


def metadata_refusal(metadata: Labels, stream: str, limits: Limits) -> str | None:
    """Return the reason for which the distributor refuses structured metadata, None if it is accepted."""
    if not metadata:
        return None
    total = metadata_bytes(metadata)
    see = "Please see `limits_config.{}` or contact your Loki administrator to increase it."
    if total > limits.max_metadata_bytes:
        return (
            f"stream '{stream}' has structured metadata too large: '{total}' bytes, "
            f"limit: '{limits.max_metadata_bytes}' bytes. {see.format('max_structured_metadata_size')}"
        )
    if len(metadata) > limits.max_metadata_count:
        return (
            f"stream '{stream}' has too many structured metadata labels: '{len(metadata)}', "
            f"limit: '{limits.max_metadata_count}'. {see.format('max_structured_metadata_entries_count')}"
        )
    return None


def grouped(refusals: Sequence[str]) -> str:
    """Join the distributor's refusals, equal ones counted; Loki lists all of them, not ten."""
    if len(refusals) == 1:
        return refusals[0]
    return "; ".join(f"{count} errors like: {text}" for text, count in Counter(refusals).items())


def too_far_behind(late: Sequence[tuple[int, int]], total: int, stream: str, tenant: str) -> str:
    """List at most ten of an ingester's refusals, each a timestamp with the oldest one it would take."""
    listed = [
        f"entry with timestamp {go_time(ts_ns)} ignored, reason: 'entry too far behind, entry timestamp is: "
        f"{rfc3339(ts_ns)}, oldest acceptable timestamp is: {rfc3339(cutoff_ns)}',\n"
        for ts_ns, cutoff_ns in late[:MAX_LISTED]
    ]
    return "".join(listed) + f"user '{tenant}', total ignored: {len(late)} out of {total} for stream: {stream}"


def metadata_bytes(metadata: Labels) -> int:
    """Return the bytes of names and values."""
    return sum(map(size, metadata)) + sum(map(size, metadata.values()))


def size(text: str) -> int:
    """Return the bytes of a text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def rfc3339(ts_ns: int) -> str:
    """Write a time as Go's RFC3339, in whole seconds."""
    return f"{datetime.fromtimestamp(ts_ns // SECOND_NS, UTC):%Y-%m-%dT%H:%M:%SZ}"


def go_time(ts_ns: int) -> str:
    """Write a time as Go's Time.String does, without trailing zeros."""
    seconds, rest = divmod(ts_ns, SECOND_NS)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
