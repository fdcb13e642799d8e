"""Checks the arguments of the client's calls; an error names the argument, its value and the allowed ones."""

from __future__ import annotations

import os
from collections.abc import Iterable

from trainwire.client.errors import ClientError
from trainwire.ingest.sanitize import shown
from trainwire.ingest.settings.environment import whole_number
from trainwire.schemas.wire.validation import MAX_ID


def check_text(name: str, value: object, words: tuple[str, ...] = ()) -> None:
    """Raise `ClientError` unless `value` is None or a string; if `words` are given, it must be one of them."""
    if value is None or (isinstance(value, str) and (not words or value in words)):
        return
    allowed = f"one of {', '.join(words)}" if words else "a string"
    raise ClientError(f"{name}={shown(value)} is not {allowed}")


def checked_whole(name: str, value: object, least: int = 0, most: int = MAX_ID) -> int | None:
    """Return `value` as an int; None stays None.

    Integers of NumPy and similar libraries are accepted. Raises `ClientError` if `value` is not a whole number
    from `least` to `most`.
    """
    try:
        return None if value is None else whole_number(name, value, least, most)
    except ValueError as exc:
        raise ClientError(str(exc)) from exc


def checked_names(value: object, argument: str = "names") -> list[str]:
    """Return `value`, one name or an iterable of names, as a list; None gives an empty list.

    Raises `ClientError` for other values; its text names the `argument`.
    """
    names = [value] if isinstance(value, str) else [] if value is None else value
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise ClientError(f"{argument}={shown(value)} is neither a name nor a list of names")
    found = []
    for name in names:
        if not isinstance(name, str):
            raise ClientError(f"{argument} has {shown(name)}, which is not a string: give names such as 'loss'")
        found.append(name)
    return found


def check_path(name: str, value: object) -> None:
    """Raise `ClientError` unless `value` is None, or a path without a NUL character."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if value is not None and (not isinstance(text, str) or "\0" in text):
        raise ClientError(f"{name}={shown(value)} is not a path: give a string or a pathlib.Path")
