"""The fields of jobs in filters, sort orders and column lists: `status`, `params.lr`, `metrics.loss.best` ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal, TypeAlias

Type: TypeAlias = Literal["number", "duration", "time", "text", "word", "truth", "free"]
"""The type of a field's values.

`word` is one of a fixed set of texts, such as a status; `truth` is a boolean. `free` is any JSON value: it is
compared as a number if both operands are numbers, otherwise as text.
"""
Space: TypeAlias = Literal["", "params", "tags", "metrics"]

COLUMNS: Final[dict[str, Type]] = {
    "id": "number",
    "name": "text",
    "status": "word",
    "attempt": "number",
    "created": "time",
    "started": "time",
    "ended": "time",
    "seen": "time",
    "duration": "duration",
    "progress": "number",
    "epoch": "number",
    "epochs": "number",
    "best_epoch": "number",
    "exit_code": "number",
    "error": "text",
    "ranks": "number",
    "machine": "text",
    "user": "text",
    "lines": "number",
    "points": "number",
    "checkpoints": "number",
    "parent": "number",
    "note": "text",
    "archived": "truth",
}
"""Field name -> type, for the fields that every job has."""
TAGGED: Final = ("project", "group")
"""Abbreviations of tags: `project` means `tags.project`, and `group` means `tags.group`."""
SPACES: Final[tuple[Space, ...]] = ("params", "tags", "metrics")
"""Prefixes of the fields whose names users choose, as in `params.lr`."""
KINDS_OF_VALUE: Final = ("last", "best", "min", "max")
"""Suffixes that select one value of a metric, as in `metrics.loss.best`; the default is `last`."""
MAX_SHOWN_CHARS: Final = 60
"""Number of characters of an invalid text that an error message quotes."""


class WrongField(ValueError):  # noqa: N818 - its text is sent to clients
    """The text names no field of a job; the message quotes it, and suggests similar fields if there are any."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of jobs: a column, or a name in params, tags or metrics.

    `of` is one of `KINDS_OF_VALUE` for a metric, and empty for other fields.
    """

    space: Space
    name: str
    of: str = ""

    @property
    def type(self) -> Type:
        """The type of the field's values."""
        if self.space:
            return "number" if self.space == "metrics" else "free"
        return COLUMNS[self.name]


@dataclass(frozen=True, slots=True)
class Piece:
    """A quoted or unquoted part of a field name; a dot in a quoted part does not separate names."""

    text: str
    is_quoted: bool = False


def field_of(pieces: Sequence[Piece]) -> Field:
    """Return the field that `pieces` spell, such as `params.` and a quoted `batch size`.

    Raises `WrongField` if jobs have no such field, or if no name follows `params.`, `tags.` or `metrics.`.
    """
    typed = "".join(piece.text for piece in pieces)
    head, dot, first = pieces[0].text.partition(".") if not pieces[0].is_quoted else ("", "", "")
    if not dot and len(pieces) == 1 and head in COLUMNS:
        return Field("", head)
    if not dot and len(pieces) == 1 and head in TAGGED:
        return Field("tags", head)
    if head not in SPACES or (not dot):
        raise WrongField(_unknown(typed, head))
    rest = [Piece(first), *pieces[1:]]
    name, of = "".join(piece.text for piece in rest), ""
    if head == "metrics":
        name, of = _metric(name, is_quoted=rest[-1].is_quoted)
    if not name.strip():
        raise WrongField(
            f"`{shown(typed)}` has no name after `{head}.`; write for example {head}.{_EXAMPLES[head]}"
        )
    return Field(head, name, of)


def shown(text: str) -> str:
    """Return `text`, shortened to MAX_SHOWN_CHARS for an error message."""
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def _metric(name: str, *, is_quoted: bool) -> tuple[str, str]:
    """Split `loss.best` into the metric's name and the kind of value.

    If the last part was quoted or is not one of KINDS_OF_VALUE, it is part of the name and the kind is `last`.
    """
    start, _, end = name.rpartition(".")
    if is_quoted or not start:
        return name, "last"
    return (start, end) if end in KINDS_OF_VALUE else (name, "last")


def _unknown(typed: str, head: str) -> str:
    rest = typed.partition(".")[2]
    if head in SPACES:
        near = [f"{head}.{_EXAMPLES[head]}"]
    elif rest:
        near = [f"{space}.{shown(rest)}" for space in get_close_matches(head.lower(), SPACES, 1)]
    else:
        near = get_close_matches(typed.lower(), [*COLUMNS, *TAGGED], 1, 0.75)
    if not near and typed.strip():
        near = [f"{space}.{shown(typed)}" for space in SPACES]
    return f"unknown field `{shown(typed)}`" + (f"; did you mean {' or '.join(near)}?" if near else "")


_EXAMPLES: Final[dict[Space, str]] = {"params": "lr", "tags": "dataset", "metrics": "loss"}
