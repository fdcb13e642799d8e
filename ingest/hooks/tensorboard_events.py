"""Decodes events of TensorBoard: the parts of its protocol buffers that hold numbers, parameters and text.

The messages are those of TensorFlow's `event.proto`, `summary.proto` and `tensor.proto`, and of TensorBoard's
`plugins/hparams/plugin_data.proto`. Fields are read by their numbers, so no protobuf package is needed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final

from trainwire.ingest.hooks.protobuf import fields, signed, varint
from trainwire.schemas.times import seconds_to_ns

SPLITS: Final = frozenset({"train", "training", "validation", "valid", "val", "eval", "evaluation", "test"})
"""Names of folders that hold a part of a training's curves, and stand side by side."""
_TIME: Final = re.compile(r"\d{9,11}(\.\d+)?")
_NUMBERS_OF_DTYPE: Final = {1: "<f", 2: "<d", 3: "<i", 9: "<q", 10: "<?", 19: "<e"}
"""How `tensor_content` holds one number, by DataType."""
_KINDS: Final = {4: "image", 5: "histogram", 6: "audio"}
"""Fields of Summary.Value that hold no number."""


class DamagedEventError(ValueError):
    """The bytes are no event."""


@dataclass
class Event:
    """The content of one event; `ts` is in nanoseconds since 1970."""

    ts: int = 0
    step: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    texts: list[tuple[str, str]] = field(default_factory=list)
    not_taken: list[str] = field(default_factory=list)
    """The kind of each value that is no number, parameter or text."""


class EventDecoder:
    """Decodes the events of one writer; keeps the kind of each tag, which only the tag's first value states."""

    def __init__(self) -> None:
        self._plugins: dict[str, str] = {}

    def decode(self, data: bytes) -> Event:
        """Decode an event; raise `DamagedEventError` for invalid bytes."""
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
    """Return the prefix of metric names for a folder of event files, by its path from the folder of the run.

    `train` has the prefix `train/`, and the folder of the run itself none. A last part that is a time is left out:
    `add_hparams` writes into such a folder.
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
    """Return the number in a tensor with one number; None for tensors of strings or of several numbers."""
    known = dict(fields(tensor))
    dtype = known.get(1, 0)
    if 4 in known:  # tensor_content
        form = _NUMBERS_OF_DTYPE.get(dtype)
        content = known[4]
        return float(struct.unpack(form, content)[0]) if form and struct.calcsize(form) == len(content) else None
    for number, form in ((5, "<f"), (6, "<d")):  # float_val, double_val: packed
        if number in known:
            return (
                float(struct.unpack(form, known[number])[0])
                if len(known[number]) == struct.calcsize(form)
                else None
            )
    for number in (7, 10):  # int_val, int64_val: packed varints
        if number in known:
            value = varint(known[number], 0)[0] if isinstance(known[number], bytes) else known[number]
            return float(signed(value))
    return None


def _strings(tensor: bytes) -> Iterator[str]:
    for number, value in fields(tensor):
        if number == 8:
            yield value.decode("utf-8", "replace")


def _hparams(data: bytes) -> dict[str, Any]:
    """Return the hyperparameters of a session's start; nothing of any other message of the plugin."""
    params = {}
    for number, session_start in fields(data):
        if number == 3:
            for inner, entry in fields(session_start):
                if inner == 1:
                    pair = dict(fields(entry))
                    params[pair[1].decode("utf-8", "replace")] = _protobuf_value(pair.get(2, b""))
    return params


def _protobuf_value(data: bytes) -> Any:
    """Return a `google.protobuf.Value`: None, a number, a text or a truth value."""
    for number, value in fields(data):
        if number == 2:
            return struct.unpack("<d", value)[0]
        if number == 3:
            return value.decode("utf-8", "replace")
        if number == 4:
            return bool(value)
    return None
