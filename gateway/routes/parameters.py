"""The parameters that several routes take, each with what is allowed."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Path, Query
from pydantic import AfterValidator

from trainwire.gateway.auth.authorization import require
from trainwire.gateway.resources import Resources, resources
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID

MAX_TEXT_CHARS = 1000
VIEWER = [Depends(require("viewer"))]
TRAINER = [Depends(require("trainer"))]


def _plain(text: str) -> str:
    """Return the text; refuse what Postgres cannot hold, and so cannot look for."""
    if "\x00" in text:
        raise ValueError("NUL is in no text here")
    return text


Found = Annotated[Resources, Depends(resources)]
JobId = Annotated[int, Path(ge=1, le=MAX_ID, description="The job's number.", examples=[42])]
Text = Annotated[str, Query(max_length=MAX_TEXT_CHARS), AfterValidator(_plain)]
Seq = Annotated[int, Query(ge=0, le=MAX_ID)]
Attempt = Annotated[int, Query(ge=-MAX_ATTEMPT, le=MAX_ATTEMPT)]
Rank = Annotated[int, Query(ge=0, le=MAX_ATTEMPT)]
LogType = Literal["stdout", "stderr"]
Names = Annotated[
    list[Annotated[str, AfterValidator(_plain)]],
    Query(max_length=100, description="Names of metrics, separated by commas, or repeated."),
]


def split_names(given: list[str]) -> list[str]:
    """Return the names of a parameter that may be repeated and may hold several, each once."""
    names = [name.strip() for text in given for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))
