"""What the tests of the framework integrations share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from ingest.testing import RecordedRun

REASON: Final = "the extra `frameworks` is not installed: docs/integrations.md"
"""Why a test is skipped."""


@pytest.fixture
def run() -> Iterator[RecordedRun]:
    """Give a run that keeps what it is told, and ends well with the test."""
    with RecordedRun(42) as run:
        yield run
