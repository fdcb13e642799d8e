"""Fixtures of the tests that use the workers' code without Celery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.factories import NOW_NS, SECOND_NS, Sender, completion, drain
from trainwire.workers.resources import Resources


@pytest.fixture
def finish(resources: Resources, sender: Sender) -> Callable[..., None]:
    """Give a function that ends a job."""

    def finish(job: int = 1, **fields: Any) -> None:
        sender.send(completion(ts=NOW_NS + 10_000 * SECOND_NS, **fields), job=job)
        drain(resources, "completions", job)

    return finish
