"""docs/ends.md has the table of the system tests."""

from __future__ import annotations

from tests.processes import ROOT
from tests.system.ends import tables


def test_the_document_has_every_end_that_is_tried() -> None:
    """The tables are those of tests/system/ends.py: `python -m tests.system.ends` prints them."""
    assert (ROOT / "docs" / "ends.md").read_text().endswith("\n" + tables())
