"""The states of the sum of a job's messages; docs/concepts.md explains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

State = Literal["open", "incomplete", "unproven", "accounted", "complete"]
_MAY_GROW: Final[tuple[State, ...]] = ("open", "incomplete")


def may_grow(document: Mapping[str, Any]) -> bool:
    """Return whether more rows of a job may arrive, from the document of `GET /jobs/{id}/completeness`."""
    return document["state"] in _MAY_GROW or bool(document["absent_ranks"])
