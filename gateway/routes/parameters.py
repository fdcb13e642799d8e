"""Parameters that several routes have, with their limits, and page cursors."""

from __future__ import annotations

import base64
from typing import Annotated, Final

from fastapi import Depends, Path, Query
from pydantic import AfterValidator

from trainwire.gateway.auth.authorization import Identity, require
from trainwire.gateway.http.problems import wrong_value
from trainwire.gateway.resources import Resources, resources_of
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID

MAX_TEXT_CHARS: Final = 1000
VIEWER: Final = [Depends(require("viewer"))]
TrainerOfNames = Annotated[Identity, Depends(require("trainer", checks_names=True))]
"""Identity of a trainer; its token may be limited to job names, so the route calls `JobNames.check`."""


def _without_nul(text: str) -> str:
    """Pydantic validator: reject text with NUL, which Postgres cannot store."""
    if "\x00" in text:
        raise ValueError("must not contain NUL: no stored text does")
    return text


ResourcesDep = Annotated[Resources, Depends(resources_of)]
JobId = Annotated[int, Path(ge=1, le=MAX_ID, description="The job's number.", examples=[42])]
Text = Annotated[str, Query(max_length=MAX_TEXT_CHARS), AfterValidator(_without_nul)]
Seq = Annotated[int, Query(ge=0, le=MAX_ID)]
Attempt = Annotated[int, Query(ge=-MAX_ATTEMPT, le=MAX_ATTEMPT)]
Rank = Annotated[int, Query(ge=0, le=MAX_ATTEMPT)]
Names = Annotated[
    list[Annotated[str, AfterValidator(_without_nul)]],
    Query(
        max_length=100,
        description=r"Names of metrics, separated by commas, or repeated; `\,` is a comma in a name.",
    ),
]


def encode_cursor(data: bytes) -> str:
    """Encode data as a page cursor that is safe in a URL."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode_cursor(cursor: str) -> bytes:
    """Decode a page cursor; raise `ValueError` if it is malformed."""
    return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)


def wrong_cursor(cursor: str) -> Exception:
    """Return the 422 error for a cursor that is not the `next` of a page of the same request."""
    return wrong_value("cursor", cursor, "must be the `next` of a page with the same parameters")
