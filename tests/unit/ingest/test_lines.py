"""Text cut into lines as a terminal shows them."""

from __future__ import annotations

import pytest

from trainwire.ingest.lines.line_splitting import MAX_LINE_BYTES, LineCutter


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        (["a\nb\n"], ["a", "b"]),
        (["a", "b\n", "tail"], ["ab", "tail"]),
        (["a\r\nb\r", "\n"], ["a", "b"]),
        (["10%\r20%\r30%\n"], ["30%"]),
        (["\r10%", "\r20%", "\r30%"], ["30%"]),
        (["10%\r", "\r\n", "x\n"], ["10%", "x"]),
        (["\r10%\x1b[K\r20%\x1b[K", "\x1b[2K\r\x1b[32m30%\x1b[0m\x1b[K\n"], ["\x1b[32m30%\x1b[0m"]),
        (["\x1b", "[A\x1b[2Kx\n"], ["x"]),
        (["\n\n"], ["", ""]),
        ([""], []),
    ],
)
def test_lines_are_what_a_terminal_shows(chunks: list[str], lines: list[str]) -> None:
    """Newlines end lines, carriage returns redraw them, colours stay, and the unfinished last one counts."""
    cutter = LineCutter()
    assert [line for chunk in chunks for line in cutter.feed(chunk)] + cutter.close() == lines


@pytest.mark.parametrize("chunk_chars", [1000, 65_536, 200_000])
def test_a_long_line_comes_in_numbered_parts(chunk_chars: int) -> None:
    """However it is split, nothing is lost, the last part is marked, and the next line begins normally."""
    text = "x" * 150_000 + "\nshort\n"
    cutter = LineCutter()
    chunks = [text[begin : begin + chunk_chars] for begin in range(0, len(text), chunk_chars)]
    lines = [line for chunk in chunks for line in cutter.feed(chunk)] + cutter.close()
    assert lines == [
        "[part 1] " + "x" * MAX_LINE_BYTES,
        "[part 2] " + "x" * MAX_LINE_BYTES,
        "[part 3, last] " + "x" * (150_000 - 2 * MAX_LINE_BYTES),
        "short",
    ]


def test_a_line_without_end_is_logged_on_the_way() -> None:
    """Memory stays bounded: parts are given out before the line ends, and its rest at the end of the output."""
    cutter = LineCutter()
    assert cutter.feed("x" * MAX_LINE_BYTES) == []
    assert cutter.feed("y") == ["[part 1] " + "x" * MAX_LINE_BYTES]
    assert cutter.close() == ["[part 2, last] y"]


@pytest.mark.parametrize("character", ["ä", "数", "🚀", "\udcff"])
def test_parts_are_measured_in_bytes_and_cut_between_characters(character: str) -> None:
    """A part takes at most 64 KiB in UTF-8 and is as long as that allows; the parts together are the line."""
    text = "x" + character * 50_000
    cutter = LineCutter()
    parts = [line.partition("] ")[2] for line in cutter.feed(text + "\n")]
    assert "".join(parts) == text
    assert len(parts) > 1
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
    assert max(sizes) <= MAX_LINE_BYTES
    assert min(sizes[:-1]) > MAX_LINE_BYTES - 4
