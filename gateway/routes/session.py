"""Routes of a browser's session: a token in an HttpOnly cookie."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from trainwire.gateway.auth.authorization import COOKIE, Authorizer, Identity, invalid_token, token_of
from trainwire.gateway.auth.tokens import MAX_TOKEN_CHARS
from trainwire.gateway.documents.response_types import SessionState
from trainwire.gateway.http.responses import described, json_response

router = APIRouter(tags=["session"])
SESSION_S: Final = 30 * 24 * 3600


class NewSession(BaseModel):
    """The token to put into the cookie."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"token": "tw_example"}]})

    token: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN_CHARS, pattern=r"^[A-Za-z0-9_-]+$")]


@router.get("/session", responses=described(SessionState))
async def session(request: Request) -> Response:
    """Return whether tokens are required, and the role of this request's token."""
    authorizer: Authorizer = request.app.state.authorizer
    token = token_of(request)
    return _state(request, await authorizer.identify(token or "") if token or not authorizer.is_on else None)


@router.post("/session", responses=described(SessionState, 400, 413))
async def begin(request: Request, body: NewSession) -> Response:
    """Set the cookie, if the token is valid."""
    authorizer: Authorizer = request.app.state.authorizer
    identity = await authorizer.identify(body.token)
    if identity is None:
        raise invalid_token()
    response = _state(request, identity)
    _set_cookie(request, response, body.token, SESSION_S)
    return response


@router.delete("/session", status_code=204)
async def end(request: Request) -> Response:
    """Delete the cookie; the token itself stays valid."""
    response = Response(status_code=204)
    _set_cookie(request, response, "", 0)
    return response


def _set_cookie(request: Request, response: Response, token: str, max_age_s: int) -> None:
    response.set_cookie(
        COOKIE,
        token,
        max_age=max_age_s,
        path=None,  # none: browsers use the folder of this URL, which includes the prefix of a proxy
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _state(request: Request, identity: Identity | None) -> Response:
    authorizer: Authorizer = request.app.state.authorizer
    may_read = not authorizer.is_on or (identity is not None and identity.role != "trainer")
    return json_response(
        SessionState(
            auth="on" if authorizer.is_on else "off",
            role=None if identity is None else identity.role,
            job_id=None if identity is None else identity.job_id,
            flower_url=request.app.state.resources.settings.gateway_flower_url if may_read else None,
        )
    )
