"""A browser's session: the token in a cookie that no script can read."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from trainwire.gateway.auth.authorization import COOKIE, Guard, Identity, Unauthorized, token_of
from trainwire.gateway.auth.tokens import MAX_TOKEN_CHARS
from trainwire.gateway.documents.documents import SessionState
from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, json_answer

router = APIRouter(tags=["session"])
SESSION_S: Final = 30 * 24 * 3600


class NewSession(BaseModel):
    """The token to come in with."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"token": "tw_example"}]})

    token: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN_CHARS, pattern=r"^[A-Za-z0-9_-]+$")]


@router.get("/session", responses=described(SessionState, examples.SESSION))
async def session(request: Request) -> Response:
    """Say whether this gateway asks for a token, and who asks."""
    guard: Guard = request.app.state.guard
    token = token_of(request)
    return _state(request, await guard.identify(token or "") if token or not guard.is_on else None)


@router.post("/session", responses=described(SessionState, examples.SESSION, 400, 413))
async def begin(request: Request, body: NewSession) -> Response:
    """Put a valid token into a cookie."""
    guard: Guard = request.app.state.guard
    identity = await guard.identify(body.token)
    if identity is None:
        raise Unauthorized("the token is not valid: unknown, expired or revoked")
    answer = _state(request, identity)
    _set_cookie(request, answer, body.token, SESSION_S)
    return answer


@router.delete("/session", status_code=204)
async def end(request: Request) -> Response:
    """Take the cookie away; the token itself stays valid."""
    answer = Response(status_code=204)
    _set_cookie(request, answer, "", 0)
    return answer


def _set_cookie(request: Request, answer: Response, token: str, max_age_s: int) -> None:
    answer.set_cookie(
        COOKIE,
        token,
        max_age=max_age_s,
        path=None,  # the folder of this address, as browsers see it: a proxy may serve us below a path of its own
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _state(request: Request, identity: Identity | None) -> Response:
    guard: Guard = request.app.state.guard
    may_look = not guard.is_on or (identity is not None and identity.role != "trainer")
    return json_answer(
        SessionState(
            auth="on" if guard.is_on else "off",
            role=None if identity is None else identity.role,
            job_id=None if identity is None else identity.job_id,
            flower_url=request.app.state.resources.settings.gateway_flower_url if may_look else None,
        )
    )
