"""Lines that come again and again."""

from __future__ import annotations

from trainwire.ingest.output.repeats import TELL_EVERY_S, RepeatFolder


def test_equal_lines_in_a_row_are_one_and_a_count() -> None:
    """The first is kept at once, the others are counted when another line or the end comes, across chunks too."""
    folder = RepeatFolder()
    assert folder.feed(["a", "nan", "nan"], 0.0) == ["a", "nan"]
    assert folder.feed(["nan", "nan"], 0.0) == []
    assert folder.feed(["b", "nan"], 0.0) == ["trainwire: the last line came 3 more times", "b", "nan"]
    assert folder.feed(["nan"], 0.0) == []
    assert folder.close() == ["trainwire: the last line came 1 more time"]
    assert folder.close() == []


def test_a_line_that_never_ends_to_come_is_counted_on_the_way() -> None:
    """Who follows the log sees that the training still prints."""
    folder = RepeatFolder()
    assert folder.feed(["nan"], 0.0) == ["nan"]
    assert folder.feed(["nan"] * 5, TELL_EVERY_S - 1) == []
    assert folder.feed(["nan"] * 1000, TELL_EVERY_S) == ["trainwire: the last line came 1,005 more times"]
    assert folder.feed(["nan"], TELL_EVERY_S + 1) == []
    assert folder.close() == ["trainwire: the last line came 1 more time"]
