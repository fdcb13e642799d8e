"""Text cut into lines as a terminal shows them."""

from __future__ import annotations

import pytest

from ingest.lines import MAX_LINE_CHARS, LineCutter


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        (["a\nb\n"], ["a", "b"]),
        (["a", "b\n", "tail"], ["ab", "tail"]),
        (["a\r\nb\r", "\n"], ["a", "b"]),
        (["10%\r20%\r30%\n"], ["30%"]),
        (["\r10%", "\r20%", "\r30%"], ["30%"]),
        (["10%\r", "\r\n", "x\n"], ["10%", "x"]),
        (["\n\n"], ["", ""]),
        ([""], []),
    ],
)
def test_lines_are_what_a_terminal_shows(chunks: list[str], lines: list[str]) -> None:
    """Newlines end lines, carriage returns redraw them, and the unfinished last one counts."""
    cutter = LineCutter()
    assert [line for chunk in chunks for line in cutter.feed(chunk)] + cutter.close() == lines


def test_an_endless_line_is_cut() -> None:
    """A line without end does not grow beyond its bound, and nothing of it is lost."""
    cutter = LineCutter()
    lines = [line for _ in range(5) for line in cutter.feed("x" * 500_000)] + cutter.close()
    assert [len(line) for line in lines] == [MAX_LINE_CHARS, MAX_LINE_CHARS, 2_500_000 - 2 * MAX_LINE_CHARS]
