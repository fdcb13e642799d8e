"""Decodes W&B history and summary records of numbers, five times as fast as `fields` and `item_of`."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from trainwire.cli.transfer.readers.wandb_values import item_of, json_number
from trainwire.ingest.hooks.protobuf import ProtobufError, varint
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.non_finite import NON_FINITE_NAMES

NOT_VALUES: Final = frozenset({"_step", "_timestamp", "_runtime", "_wandb"})
MOST_HEADS: Final = 50_000
"""Largest number of heads that are known, of 25 different lengths for each name."""
_MOST_VALUE_BYTES: Final = 25
"""Length of the longest JSON text of a number that is expected; that of a float has at most 24 characters."""
_MAX_SHORT: Final = 0x7F
_VALUE_KEY: Final = b"\x82\x01"
"""The protobuf key of an item's field `value_json`, its last one."""
_NUMBER_KEY, _HISTORY_KEY, _SUMMARY_KEY = 0x08, 0x12, 0x1A
_ITEM_KEY, _STEP_KEY, _STEP_NUMBER_KEY = 0x0A, 0x12, 0x08
_KINDS: Final = (_HISTORY_KEY, _SUMMARY_KEY)
_MAX_VARINT_BYTES: Final = 9
_JSON_NAMES: Final = {f'"{name}"'.encode(): number for name, number in NON_FINITE_NAMES.items()}


class RowDecoder:
    """Decodes the history and summary records of one file.

    An item begins with its length, its names and the length of its value. Only these bytes (the head of the item)
    are looked up, in a table of the heads that are known: each was tested with `item_of` before. An item with
    another head is not decoded. Nothing is assumed about the order of items, which is random.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[int, int, str, bool]] = {}
        """Head of an item without the length of its value -> that length, the end of the value after it, the name,
        and whether it is an axis."""
        self._names: dict[str, tuple[str, ...]] = {}
        """Name -> the nested names that it was joined from; items with others of the same name are not decoded."""
        self._content, self._items_end = b"", 0
        """The content of the last history record, and where its items end: a summary record often has the same."""
        self._decoded: tuple[dict[str, bytes], dict[str, float]] = {}, {}
        """The items of that record."""
        self._axes_only = b""
        """The items of the last summary record without numbers: many have the same, the seconds of the run."""

    def decode(self, record: bytes) -> tuple[int | None, dict[str, bytes], dict[str, float]] | None:
        """Return the step of a history record, or None for a summary, the texts of its axes, and its numbers.

        The dictionaries must not be changed. Returns None if the record must be decoded with `fields` and
        `item_of`. The result is the same.
        """
        try:
            at = 2  # after the key and the first byte of the record's number
            while record[at - 1] > _MAX_SHORT:
                at += 1
            kind, size, begin = record[at], record[at + 1], at + 2
            if size > _MAX_SHORT:
                size, begin = varint(record, at + 1)
            content = record[begin:]
            if kind not in _KINDS or len(content) != size or record[0] != _NUMBER_KEY or at > _MAX_VARINT_BYTES:
                return None
            if kind == _HISTORY_KEY:
                axes, numbers, rest = self._decode_items(content)
                step = _step(rest)
                self._content, self._items_end, self._decoded = content, size - len(rest), (axes, numbers)
                return step, axes, numbers
            if content == self._axes_only:
                return None, {}, {}
            if size == self._items_end and self._content.startswith(content):
                return None, *self._decoded
            axes, numbers, rest = self._decode_items(content)
        except (LookupError, ProtobufError):
            return None
        if not numbers:
            self._axes_only = content
        return None if rest else (None, axes, numbers)

    def _decode_items(self, content: bytes) -> tuple[dict[str, bytes], dict[str, float], bytes]:
        """Decode the items at the beginning of a record; return the axes, the numbers and the bytes after them.

        Raises `LookupError` for an unknown head or value.
        """
        axes: dict[str, bytes] = {}
        numbers: dict[str, float] = {}
        heads = self._heads
        rest, *parts = content.split(_VALUE_KEY)
        for part in parts:
            size, end, name, is_axis = heads[rest]
            if part[0] != size:
                raise LookupError(part)
            text, rest = part[1:end], part[end:]
            if is_axis:
                axes[name] = text
                continue
            try:
                numbers[name] = json_number(text)
            except DECODE_ERRORS:
                numbers[name] = _JSON_NAMES[text]
        if not rest and len(parts[-1]) != end:
            raise LookupError(content)  # the last value is cut short; after another one, no head would be known
        return axes, numbers, rest

    def learn(self, items: Iterable[bytes]) -> None:
        """Let `decode` know the names in these items from now on, as far as their values are numbers."""
        for item in items:
            names, raw = item_of(item)
            head = item[: -len(raw) - len(_VALUE_KEY) - 1]
            shortest = len(head) + len(_VALUE_KEY) + 2
            if shortest > _MAX_SHORT or bytes((_ITEM_KEY, shortest)) + head in self._heads:
                continue
            name = ".".join(names)
            if len(self._heads) < MOST_HEADS and _is_learned(names, raw) and _is_head(head, names):
                if self._names.setdefault(name, names) != names:
                    continue
                for size in range(1, min(_MOST_VALUE_BYTES, _MAX_SHORT - shortest + 1) + 1):
                    length = shortest - 1 + size
                    self._heads[bytes((_ITEM_KEY, length)) + head] = size, size + 1, name, names[0] in NOT_VALUES


def _is_learned(names: tuple[str, ...], raw: bytes) -> bool:
    """Return whether other items with these names may be decoded without `row_of`."""
    if "_type" in names[1:] or (names[0] in NOT_VALUES and names[1:] and names[0] != "_wandb"):
        return False
    try:
        json_number(raw)
    except DECODE_ERRORS:
        return raw in _JSON_NAMES
    return True


def _is_head(head: bytes, names: tuple[str, ...]) -> bool:
    """Return whether an item that begins with `head` has these names and its value after it."""
    try:
        return item_of(head + _VALUE_KEY + b"\x030.5") == (names, b"0.5")
    except (ValueError, struct.error, TypeError, AttributeError):
        return False


def _step(content: bytes) -> int:
    """Decode the field `step` of a history record; raise `LookupError` if `content` is not only this field."""
    size = len(content)
    if content[0] == _STEP_KEY and content[1] == size - 2:
        if size == 2:
            return 0
        step, end = varint(content, 3)
        if content[2] == _STEP_NUMBER_KEY and end == size:
            return step
    raise LookupError(content)
