"""Positions as clients carry them."""

from __future__ import annotations

import pytest

from trainwire.gateway.feed.positions import BadPosition, Position, read_position


def test_a_position_comes_back_as_it_was_given() -> None:
    """Text and position are the same thing."""
    position = Position(120, 45, 2**63 - 1)
    assert read_position(str(position)) == position


@pytest.mark.parametrize(
    "written", ["", "1", "1-2", "1-2-3-4", "-1-2-3", "a-b-c", "1-2-٣", "1-2-9999999999999999999", " 1-2-3"]
)
def test_what_no_feed_gave_is_refused(written: str) -> None:
    """Anything else is named in the error, with what is right."""
    with pytest.raises(BadPosition, match="120-45-3"):
        read_position(written)
