"""Positions as text, which clients send back."""

from __future__ import annotations

import pytest

from trainwire.gateway.feed.feed_rows import FeedPosition, InvalidPosition, parse_position


def test_a_position_comes_back_as_it_was_given() -> None:
    """A position that is formatted and parsed is the same."""
    position = FeedPosition(120, 45, 2**63 - 1)
    assert parse_position(str(position)) == position


@pytest.mark.parametrize(
    "text", ["", "1", "1-2", "1-2-3-4", "-1-2-3", "a-b-c", "1-2-٣", "1-2-9999999999999999999", " 1-2-3"]
)
def test_malformed_positions_are_refused(text: str) -> None:
    """The error has an example of a valid position."""
    with pytest.raises(InvalidPosition, match="120-45-3"):
        parse_position(text)
