"""What trainers say: four kinds of bodies and the envelope that carries them through a Redis stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
import zstandard

from schemas.routes import Kind

WIRE_VERSION: Final = 1
MAX_ID: Final = 2**63 - 1
"""Largest job id and seq: a Postgres BIGINT."""
MAX_ATTEMPT: Final = 2**31 - 1
MAX_SOURCE_CHARS: Final = 200
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""Largest body after decompression: what stands between a small compressed entry and all our memory."""
MAX_FREE_BYTES: Final = 1024 * 1024
"""Largest params and tags, each: values of any shape, of which a byte can become a hundred in memory."""
MAX_FREE_DEPTH: Final = 50
COMPRESS_OVER_BYTES: Final = 2048

MIN_TIME_NS: Final = -62_135_596_800 * 10**9
MAX_TIME_NS: Final = 253_402_300_800 * 10**9 - 1
"""Years 1 to 9999: what Postgres and Python can both name."""

ATTEMPT_UNSAID: Final = 0
"""A trainer that does not know its attempt: the worker decides (docs/wire-format.md)."""

Encoding = Literal["msgpack", "json", "msgpack+zstd", "json+zstd"]
Status = Literal["pending", "running", "completed", "failed", "stalled", "lost"]
FINISHED: Final = ("completed", "failed")
"""The statuses in which an attempt has ended."""

NON_FINITE_NAMES: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How numbers that JSON cannot say are spelled, in JSON bodies and in our JSONB columns."""


class InvalidMessage(ValueError):  # noqa: N818 - the word the whole project uses
    """An entry that can never be stored: `reason` is a stable slug to count by, the text names the value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Logs(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Lines of one output stream, with one time per line (integers, nanoseconds since 1970 UTC).

    `started_at`, in every kind of body, is when the source began: a source that does not say its attempt says it.
    """

    log_type: Literal["stdout", "stderr"]
    lines: list[str]
    ts: list[int]
    levels: list[str | None] | None = None
    rank: int | None = None
    started_at: int | None = None


class Point(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Values measured at one moment; NaN and infinities are legal values."""

    ts: int
    values: dict[str, float]
    epoch: int | None = None
    step: int | None = None
    checkpoint_path: str | None = None


class Progress(msgspec.Struct, omit_defaults=True, kw_only=True):
    """How far the job is; a field that is not said leaves what is known."""

    status: Status | None = None
    current_epoch: int | None = None
    total_epochs: int | None = None
    progress_percent: float | None = None


class Metrics(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Points, progress and what the run is called; every part may be absent or empty."""

    points: list[Point] = []
    progress: Progress | None = None
    name: str | None = None
    params: dict[str, Any] | None = None
    tags: dict[str, Any] | None = None
    mlflow_run_id: str | None = None
    rank: int | None = None
    ts: int | None = None
    started_at: int | None = None


class Checkpoint(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One checkpoint file or folder, named by its URI.

    `sha256` is of the file's bytes (of a folder: of its manifest), in hex. `store_checksum` is what the object
    store itself says of the object, as S3's `ChecksumSHA256` has it. `upload_error` tells why `uri` is still a
    path on the trainer's machine.
    """

    ts: int
    kind: str
    uri: str
    epoch: int | None = None
    step: int | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    store_checksum: str | None = None
    upload_error: str | None = None
    is_best: bool | None = None
    metrics: dict[str, float] | None = None
    started_at: int | None = None


class Completion(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The end of one source; with an exit code the status follows it.

    `ended` says nothing of the job: a forked child has ended, or somebody else tells of a source that was killed.
    That one made no completion itself: its `produced` says `{"completions": 0}`.
    """

    ts: int
    status: Literal["completed", "failed", "ended"]
    exit_code: int | None = None
    total_epochs_completed: int | None = None
    final_metrics: dict[str, float] | None = None
    best_metrics: dict[str, float] | None = None
    best_epoch: int | None = None
    final_checkpoint_path: str | None = None
    best_checkpoint_path: str | None = None
    last_checkpoint_path: str | None = None
    mlflow_run_id: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    produced: dict[str, int] | None = None
    dropped: dict[str, int] | None = None
    rank: int | None = None
    started_at: int | None = None

    @property
    def outcome(self) -> Literal["completed", "failed"]:
        """Completed or failed: what the exit code says, or where there is none, what the trainer says."""
        is_well = self.status == "completed" if self.exit_code is None else self.exit_code == 0
        return "completed" if is_well else "failed"

    @property
    def is_of_job(self) -> bool:
        """Tell whether it says how the job ended, and not only that its source did."""
        return self.status != "ended"


Body: TypeAlias = Logs | Metrics | Checkpoint | Completion
BODY_TYPES: Final[dict[Kind, type[Body]]] = {
    "logs": Logs,
    "metrics": Metrics,
    "checkpoints": Checkpoint,
    "completions": Completion,
}
KIND_OF_BODY: Final[dict[type[Body], Kind]] = {body_type: kind for kind, body_type in BODY_TYPES.items()}


class Message(msgspec.Struct, frozen=True):
    """One decoded entry: who says it, its number in that source and kind, and what it says."""

    kind: Kind
    job_id: int
    attempt: int
    source: str
    seq: int
    body: Body


class Envelope(msgspec.Struct, frozen=True):
    """The flat fields of an entry, checked, with the body still encoded."""

    job_id: int
    attempt: int
    source: str
    seq: int
    encoding: str
    body: bytes


Entry: TypeAlias = dict[str, str | int | bytes]

_encode_msgpack = msgspec.msgpack.Encoder().encode
_strict_decoders: Final[dict[Kind, Callable[[bytes], Body]]] = {
    kind: msgspec.msgpack.Decoder(body_type).decode for kind, body_type in BODY_TYPES.items()
}


def encode_entry(message: Message) -> Entry:
    """Return the fields of one XADD for `message`: msgpack, compressed where the body is worth it.

    Raises `InvalidMessage` where a text or a number has no msgpack form (a lone surrogate, 2**64).
    """
    try:
        body = _encode_msgpack(message.body)
    except (UnicodeEncodeError, OverflowError, TypeError) as exc:
        raise InvalidMessage("unencodable", f"{message.kind} of job {message.job_id}: {exc}") from exc
    encoding: Encoding = "msgpack"
    if len(body) > COMPRESS_OVER_BYTES:
        body, encoding = zstandard.compress(body, 1), "msgpack+zstd"
    return {
        "v": WIRE_VERSION,
        "job": message.job_id,
        "attempt": message.attempt,
        "source": message.source,
        "seq": message.seq,
        "enc": encoding,
        "body": body,
    }


def open_envelope(fields: Mapping[bytes, bytes]) -> Envelope:
    """Check the flat fields of a raw entry and return them; the body is not looked at.

    Raises `InvalidMessage` that names the field, its value and what is allowed.
    """
    version = _whole_number(fields, b"v", 0, MAX_ID)
    if version != WIRE_VERSION:
        raise InvalidMessage("unknown-version", f"version {version} is unknown here: this side speaks 1")
    return Envelope(
        job_id=_whole_number(fields, b"job", 1, MAX_ID),
        attempt=_whole_number(fields, b"attempt", 0, MAX_ATTEMPT),
        source=_source(fields),
        seq=_whole_number(fields, b"seq", 1, MAX_ID),
        encoding=_field(fields, b"enc").decode("utf-8", "replace"),
        body=_field(fields, b"body"),
    )


def decode_body(kind: Kind, envelope: Envelope) -> Body:
    """Decode the body strictly; raise `InvalidMessage` with reason `undecodable` or `wrong-fields`."""
    raw = plain_body(envelope)
    if envelope.encoding.startswith("json"):
        try:
            return body_from_object(kind, _known_json(kind, raw))
        except msgspec.ValidationError as exc:
            raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise InvalidMessage("undecodable", f"body is not JSON: {exc}") from exc
    try:
        if kind == "metrics" and len(raw) > MAX_FREE_BYTES:
            _check_free_size(_probe_free(raw))
        body = _strict_decoders[kind](raw)
    except msgspec.ValidationError as exc:
        raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidMessage("undecodable", f"body is not msgpack: {exc}") from exc
    check_body(body)
    return body


def body_from_object(kind: Kind, value: object) -> Body:
    """Build a body from plain lists and dictionaries, with non-finite numbers spelled as in JSON."""
    try:
        body = msgspec.convert(_with_floats(value), BODY_TYPES[kind])
    except (msgspec.ValidationError, OverflowError) as exc:
        raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
    check_body(body)
    return body


def plain_body(envelope: Envelope) -> bytes:
    """Return the body's msgpack or JSON bytes, decompressed up to `MAX_BODY_BYTES`."""
    match envelope.encoding:
        case "msgpack" | "json":
            return envelope.body
        case "msgpack+zstd" | "json+zstd":
            return _decompress(envelope.body)
        case unknown:
            raise InvalidMessage("unknown-encoding", f"encoding {unknown!r} is not msgpack or json, or +zstd")


def check_body(body: Body) -> None:
    """Raise `InvalidMessage` where the fields, each of the right type, do not fit together or the tables."""
    if body.started_at is not None:
        _check_time(body.started_at)
    if isinstance(body, Logs):
        _check_logs(body)
    elif isinstance(body, Metrics):
        for point in body.points:
            _check_time(point.ts)
            _check_counts(epoch=point.epoch, step=point.step)
        if body.ts is not None:
            _check_time(body.ts)
        _check_depth(body.params)
        _check_depth(body.tags)
        if body.progress is not None:
            progress = body.progress
            _check_counts(current_epoch=progress.current_epoch, total_epochs=progress.total_epochs)
    elif isinstance(body, Checkpoint):
        _check_time(body.ts)
        _check_counts(epoch=body.epoch, step=body.step, size_bytes=body.size_bytes)
    else:
        _check_completion(body)
    _check_counts(rank=getattr(body, "rank", None), most=MAX_ATTEMPT)


def shown_float(value: float) -> float | str:
    """Return a number as JSON can carry it: itself, or the agreed name of NaN and the infinities."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


class _Free(msgspec.Struct):
    """The values of any shape in a metrics body, not decoded."""

    params: msgspec.Raw = msgspec.Raw()
    tags: msgspec.Raw = msgspec.Raw()


_probe_free = msgspec.msgpack.Decoder(_Free).decode


_find_known: Final[dict[Kind, Callable[[bytes], msgspec.Struct]]] = {
    kind: msgspec.json.Decoder(
        msgspec.defstruct(
            f"Known{body_type.__name__}",
            [(field.name, msgspec.Raw, msgspec.Raw()) for field in msgspec.structs.fields(body_type)],
        )
    ).decode
    for kind, body_type in BODY_TYPES.items()
}


def _known_json(kind: Kind, raw: bytes) -> dict[str, Any]:
    """Decode the fields that a body has, as far as they were said; nothing is built of any others."""
    known = msgspec.structs.asdict(_find_known[kind](raw))
    said = {name: value for name, value in known.items() if memoryview(value).nbytes}
    if kind == "metrics":
        _check_free_size(_Free(**{name: said[name] for name in _Free.__struct_fields__ if name in said}))
    return {name: msgspec.json.decode(value) for name, value in said.items()}


def _check_free_size(free: _Free) -> None:
    for name, value in (("params", free.params), ("tags", free.tags)):
        if len(memoryview(value)) > MAX_FREE_BYTES:
            raise InvalidMessage("too-large", f"{name} are over {MAX_FREE_BYTES} bytes")


def _check_depth(value: object, depth: int = 0) -> None:
    if depth > MAX_FREE_DEPTH:
        raise InvalidMessage("wrong-fields", f"params or tags are nested deeper than {MAX_FREE_DEPTH}")
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, depth + 1)


def _check_logs(body: Logs) -> None:
    count = len(body.lines)
    if len(body.ts) != count:
        raise InvalidMessage("wrong-fields", f"logs body: {count} lines but {len(body.ts)} times")
    if body.levels is not None and len(body.levels) != count:
        raise InvalidMessage("wrong-fields", f"logs body: {count} lines but {len(body.levels)} levels")
    if count:
        _check_time(min(body.ts))
        _check_time(max(body.ts))


def _check_completion(body: Completion) -> None:
    _check_time(body.ts)
    _check_counts(total_epochs_completed=body.total_epochs_completed, best_epoch=body.best_epoch)
    _check_counts(exit_code=body.exit_code, most=MAX_ATTEMPT)
    for counts in (body.produced, body.dropped):
        for kind, count in (counts or {}).items():
            if not 0 <= count <= MAX_ID:
                raise InvalidMessage("out-of-range", f"completions body: {count} {kind} is not a count")


def _check_time(ts: int) -> None:
    if not MIN_TIME_NS <= ts <= MAX_TIME_NS:
        raise InvalidMessage("time-out-of-range", f"time {ts} ns since 1970 is outside the years 1 to 9999")


def _check_counts(most: int = MAX_ID, **counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and not -most <= count <= most:
            raise InvalidMessage("out-of-range", f"{name} {count} is beyond {most}")


def _field(fields: Mapping[bytes, bytes], name: bytes) -> bytes:
    value = fields.get(name)
    if value is None:
        raise InvalidMessage("missing-field", f"entry has no field {name.decode()!r}")
    return value


def _whole_number(fields: Mapping[bytes, bytes], name: bytes, least: int, most: int) -> int:
    raw = _field(fields, name)
    if len(raw) > 20 or not raw.removeprefix(b"-").isdigit():
        raise InvalidMessage("wrong-fields", f"{name.decode()} {raw[:40]!r} is not a whole number")
    value = int(raw)
    if not least <= value <= most:
        raise InvalidMessage("out-of-range", f"{name.decode()} {value} is not in {least} to {most}")
    return value


def _source(fields: Mapping[bytes, bytes]) -> str:
    raw = _field(fields, b"source")
    try:
        source = raw.decode()
    except UnicodeDecodeError as exc:
        raise InvalidMessage("wrong-fields", f"source {raw[:40]!r} is not UTF-8") from exc
    if not 1 <= len(source) <= MAX_SOURCE_CHARS or "\x00" in source:
        raise InvalidMessage("wrong-fields", f"source must be 1 to {MAX_SOURCE_CHARS} characters without NUL")
    return source


def _decompress(body: bytes) -> bytes:
    try:
        plain = zstandard.ZstdDecompressor().stream_reader(body).read(MAX_BODY_BYTES + 1)
    except zstandard.ZstdError as exc:
        raise InvalidMessage("undecodable", f"body is not zstd: {exc}") from exc
    if len(plain) > MAX_BODY_BYTES:
        raise InvalidMessage("too-large", f"body is over {MAX_BODY_BYTES} bytes when decompressed")
    return plain


_NUMBER_MAPS: Final = ("values", "final_metrics", "best_metrics", "metrics")


def _with_floats(value: object) -> object:
    """Replace the names of non-finite numbers in the places where a body has maps of numbers."""
    if isinstance(value, dict):
        return {
            key: _floats(inner) if key in _NUMBER_MAPS else _with_points(key, inner)
            for key, inner in value.items()
        }
    return value


def _with_points(key: object, value: object) -> object:
    if key == "points" and isinstance(value, list):
        return [_with_floats(point) for point in value]
    return value


def _floats(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {
        name: NON_FINITE_NAMES.get(number, number) if isinstance(number, str) else number
        for name, number in value.items()
    }
