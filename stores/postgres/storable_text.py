"""Replaces the characters that a text in Postgres cannot contain."""

from __future__ import annotations

from typing import Final

NUL_REPLACEMENT: Final = "\u2400"
SURROGATE_REPLACEMENT: Final = "\ufffd"


def storable_text(text: str) -> str:
    """Return `text` as Postgres can store it: NUL and lone surrogates are replaced by visible characters."""
    if "\x00" in text:
        text = text.replace("\x00", NUL_REPLACEMENT)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "".join(SURROGATE_REPLACEMENT if "\ud800" <= char <= "\udfff" else char for char in text)
    return text
