"""Decodes TensorBoard events: scalars, hyperparameters and texts.

The messages are defined in TensorFlow's `event.proto`, `summary.proto` and `tensor.proto`, and in TensorBoard's
`plugins/hparams/plugin_data.proto`. Fields are read by number, so no protobuf package is needed.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final

from trainwire.ingest.hooks.protobuf import fields, signed, varint
from trainwire.schemas.times import seconds_to_ns

SPLITS: Final = frozenset({"train", "training", "validation", "valid", "val", "eval", "evaluation", "test"})
"""Names of sibling folders for the data splits of one training, such as `train` and `eval`."""
_TIME: Final = re.compile(r"\d{9,11}(\.\d+)?")
_HALF, _BFLOAT16 = 19, 14
_CONTENT: Final = {1: "f", 2: "d", 3: "i", 4: "B", 5: "h", 6: "b", 9: "q", 10: "?", 17: "H", 22: "I", 23: "Q"}
"""DataType -> `struct` code of one number in the field `tensor_content`, without those of 16-bit floats."""
_FIXED_VALUES: Final = {5: "<f", 6: "<d"}
"""Field number of TensorProto -> `struct` format of each number in it: float_val, double_val."""
_VARINT_VALUES: Final = frozenset({7, 10, 11, 13, 16, 17})
"""Field numbers of TensorProto with varints: int_val, int64_val, bool_val, half_val, uint32_val, uint64_val."""
_SIGNED_VALUES: Final = frozenset({7, 10})
_KINDS: Final = {4: "image", 5: "histogram", 6: "audio"}
"""Field number of Summary.Value -> kind, for the kinds that are not stored."""


class DamagedEventError(ValueError):
    """The bytes are not a valid TensorBoard event."""


@dataclass
class Event:
    """The decoded content of one TensorBoard event; `ts` is its time in nanoseconds since 1970."""

    ts: int = 0
    step: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    texts: list[tuple[str, str]] = field(default_factory=list)
    not_taken: list[str] = field(default_factory=list)
    """The kind of each value that is not a scalar, hyperparameter or text."""

    def count(self) -> int:
        """Return the number of values in the event."""
        return len(self.scalars) + len(self.params) + len(self.texts) + len(self.not_taken)


class EventDecoder:
    """Decodes the events of one TensorBoard writer, in the order in which they were written.

    Only the first value of a tag names the TensorBoard plugin that shows the tag, so the decoder remembers it.
    """

    def __init__(self) -> None:
        self._plugins: dict[str, str] = {}

    def decode(self, data: bytes) -> Event:
        """Decode an event; raise `DamagedEventError` if the bytes are invalid."""
        event = Event()
        try:
            for number, value in fields(data):
                if number == 1:
                    event.ts = seconds_to_ns(struct.unpack("<d", value)[0])
                elif number == 2:
                    event.step = signed(value)
                elif number == 5:
                    for inner, summary_value in fields(value):
                        if inner == 1:
                            self._take(event, dict(fields(summary_value)))
        except (struct.error, AttributeError, TypeError, OverflowError, ValueError) as exc:
            raise DamagedEventError(f"not an event of TensorBoard: {exc}") from exc
        return event

    def _take(self, event: Event, value: dict[int, Any]) -> None:
        tag = value.get(1, b"").decode("utf-8", "replace")
        plugin, content = _plugin_data(value.get(9, b""))
        plugin = self._plugins.setdefault(tag, plugin) if plugin else self._plugins.get(tag, "")
        number = struct.unpack("<f", value[2])[0] if 2 in value else None
        if number is None and 8 in value and plugin in {"scalars", ""}:
            number = _number(value[8])
        if plugin == "hparams":
            event.params.update(_hparams(content))
        elif number is not None:
            event.scalars[tag] = number
        elif plugin == "text":
            event.texts.extend((tag, text) for text in _strings(value.get(8, b"")))
        else:
            kind = next((kind for field_number, kind in _KINDS.items() if field_number in value), "tensor")
            event.not_taken.append(plugin.removesuffix("s") or kind)


def metric_prefix(folder: str | PurePath) -> str:
    """Return the prefix of metric names for a folder of event files, given relative to the training's root folder.

    The prefix of `train` is `train/`, that of the root folder is empty. If the path ends in a timestamp, as in
    the subfolders that `SummaryWriter.add_hparams` creates, that part is ignored.
    """
    parts = PurePath(folder).parts
    if parts and _TIME.fullmatch(parts[-1]):
        parts = parts[:-1]
    return "".join(f"{part}/" for part in parts)


def _plugin_data(metadata: bytes) -> tuple[str, bytes]:
    """Return the name of the TensorBoard plugin that shows a value, and the plugin's data."""
    plugin = dict(fields(dict(fields(metadata)).get(1, b"")))
    return plugin.get(1, b"").decode("utf-8", "replace"), plugin.get(2, b"")


def _number(tensor: bytes) -> float | None:
    """Return the number in a `TensorProto` with one element; None for other tensors, strings and complex numbers.

    As in TensorFlow, a tensor with more elements than values repeats its last value, and one without values has
    zeros.
    """
    dtype, elements, content = 0, 1, b""
    values: list[Any] = []
    for number, value in fields(tensor):
        if number == 1:
            dtype = value
        elif number == 2:
            elements = _element_count(value)
        elif number == 4:
            content = value
        else:
            values += _values(number, value)
    if elements != 1 or len(values) > 1 or dtype not in {*_CONTENT, _HALF, _BFLOAT16}:
        return None
    if content:
        return _number_of_content(dtype, content)
    if not values:
        return 0.0
    if dtype in {_HALF, _BFLOAT16}:
        return _number_of_content(dtype, (values[0] & 0xFFFF).to_bytes(2, "little"))
    return float(values[0])


def _values(number: int, value: Any) -> Iterator[Any]:
    """Yield the numbers in a field of a `TensorProto`: one number, or packed ones."""
    if number in _FIXED_VALUES:
        yield from (each for (each,) in struct.iter_unpack(_FIXED_VALUES[number], value))
    elif number in _VARINT_VALUES:
        convert = signed if number in _SIGNED_VALUES else int
        yield from map(convert, [value] if isinstance(value, int) else _varints(value))


def _element_count(shape: bytes) -> int:
    """Return the number of elements in a tensor with the `TensorShapeProto` `shape`; that of a scalar is empty."""
    return math.prod(signed(dict(fields(size)).get(1, 0)) for number, size in fields(shape) if number == 2)


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        number, at = varint(packed, at)
        yield number


def _number_of_content(dtype: int, content: bytes) -> float | None:
    """Return the number in the bytes of a tensor, or None if they have another length than one number."""
    if dtype == _BFLOAT16:  # the upper half of a float of 32 bits
        return float(struct.unpack("<f", b"\0\0" + content)[0]) if len(content) == 2 else None
    form = "<e" if dtype == _HALF else "<" + _CONTENT[dtype]
    return float(struct.unpack(form, content)[0]) if struct.calcsize(form) == len(content) else None


def _strings(tensor: bytes) -> Iterator[str]:
    for number, value in fields(tensor):
        if number == 8:
            yield value.decode("utf-8", "replace")


def _hparams(data: bytes) -> dict[str, Any]:
    """Return the hyperparameters in `data`, a message of TensorBoard's hparams plugin.

    Only the message `session_start_info` contains hyperparameters; return an empty dict for any other one.
    """
    params = {}
    for number, session_start in fields(data):
        if number == 3:
            for inner, entry in fields(session_start):
                if inner == 1:
                    pair = dict(fields(entry))
                    params[pair[1].decode("utf-8", "replace")] = _protobuf_value(pair.get(2, b""))
    return params


def _protobuf_value(data: bytes) -> Any:
    """Decode a `google.protobuf.Value`: None, a number, a string or a bool."""
    for number, value in fields(data):
        if number == 2:
            return struct.unpack("<d", value)[0]
        if number == 3:
            return value.decode("utf-8", "replace")
        if number == 4:
            return bool(value)
    return None
