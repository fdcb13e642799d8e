"""Checks of texts that users send about a job: names, notes, tags, and the author and reason of a stop request."""

from __future__ import annotations


class WrongText(ValueError):  # noqa: N818 - its text is sent to clients
    """A text cannot be stored; `field` names the field that has it."""

    def __init__(self, field: str, value: str, detail: str) -> None:
        super().__init__(f"{field} {value[:100]!r}: {detail}")
        self.field, self.value, self.detail = field, value, detail


def check_text(field: str, text: str, most_chars: int) -> None:
    """Raise `WrongText` if `text` has more than `most_chars` characters, or one that Postgres does not store."""
    if len(text) > most_chars:
        raise WrongText(field, text, f"has {len(text):,} characters: use at most {most_chars:,}")
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise WrongText(field, text, "has NUL or an invalid character: remove it")
