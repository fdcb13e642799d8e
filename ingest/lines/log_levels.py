"""Finds the level in a printed line, in the formats of known logging libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Final

LEVELS: Final = {
    "TRACE": "TRACE",
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "SUCCESS": "SUCCESS",
    "WARN": "WARNING",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "FATAL": "CRITICAL",
    "CRITICAL": "CRITICAL",
    "I": "INFO",
    "W": "WARNING",
    "E": "ERROR",
    "F": "CRITICAL",
}
"""Maps level names in printed lines to those of `logging`; TRACE and SUCCESS are levels of loguru."""

_FIRST: Final = frozenset("[\x1b0123456789" + "".join(name[0] for name in LEVELS))
"""The characters with which a line with a level can begin; most lines begin with another one."""
_HEAD_CHARS: Final = 300
"""Number of characters at the beginning of a line in which a level is searched."""
_COLOUR: Final = r"\x1b\[[0-9;:]*m"
_WORD: Final = r"(?:TRACE|DEBUG|INFO|SUCCESS|WARN(?:ING)?|ERROR|FATAL|CRITICAL)"
_TIME: Final = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d[\d.,:+Z]*"
_BORDER: Final = r"\s?[\]\[|:-][\s\]\[|:-]*"
_HEAD: Final = (
    r"(?:\[(?:part 1|\w*\d)\]:? ?)*"  # the part number of a long line, or the rank that torchrun adds
    r"(?:"
    # logging.basicConfig, uvicorn, transformers: "INFO:root:...", "[INFO|trainer.py:7]", "INFO ..."
    rf"\[?(?P<first>{_WORD})(?=[\s:|\]])"
    # glog, absl, torch: "I1123 10:00:00.123456 77 train.py:7] ...", "[W1123 10:00:00 ...", "[W socket.cpp:7] ..."
    r"|\[?(?P<letter>[IWEF])(?=(?:\d{3,4}|\d{8}) \d\d:\d\d:\d\d|\ ?[\w./]+\.\w+:\d+\])"
    # asctime, perhaps a few fields, the level: " - name - INFO - ", "[name][INFO]", " | INFO | ", " name INFO "
    rf"|\[?{_TIME}(?: [\w./]+)?(?:{_BORDER}[\w./]+){{0,4}}?[\s\]\[|:-]+"
    rf"(?:(?P<word>{_WORD})(?=[\s:|\]/-]|$)|(?P<tensorflow>[IWEF])(?= [\w./]+:\d+\]))"
    r")"
)


def levels_of(lines: Iterable[str]) -> list[str | None]:
    """Return for each printed line the log level at its beginning; None for a line without a level."""
    return [level_of(line) if line[:1] in _FIRST else None for line in lines]


def level_of(line: str) -> str | None:
    """Return the name of the log level at the beginning of a printed line; None if there is none."""
    head = line[:_HEAD_CHARS]
    if "\x1b" in head:
        head = re.sub(_COLOUR, "", head)
    found = _compiled_head().match(head)
    return None if found is None else LEVELS[str(found[found.lastgroup or 0])]


@cache
def _compiled_head() -> re.Pattern[str]:
    """Compile `_HEAD` at its first use, because a training that captures no output never needs it."""
    return re.compile(_HEAD)
