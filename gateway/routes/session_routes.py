"""Routes of a browser's session: a token in an HttpOnly cookie."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from trainwire.gateway.auth.authorization import COOKIE, Identity, invalid_token, token_of
from trainwire.gateway.auth.tokens import MAX_TOKEN_CHARS
from trainwire.gateway.documents.response_types import SessionState
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.resources import Resources
from trainwire.gateway.routes.parameters import ResourcesDep

router = APIRouter(tags=["session"])
SESSION_S: Final = 30 * 24 * 3600


class NewSession(BaseModel):
    """A token, which becomes the session cookie of the browser."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"token": "tw_example"}]})

    token: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN_CHARS, pattern=r"^[A-Za-z0-9_-]+$")]


@router.get("/session", responses=described(SessionState))
async def session(request: Request, resources: ResourcesDep) -> Response:
    """Return whether tokens are required, and the role of the token in this request."""
    token, authorizer = token_of(request), resources.authorizer
    return _state(resources, await authorizer.identify(token or "") if token or not authorizer.is_on else None)


@router.post("/session", responses=described(SessionState, 400, 413))
async def begin(request: Request, resources: ResourcesDep, body: NewSession) -> Response:
    """Set the session cookie to a token, if the token is valid."""
    identity = await resources.authorizer.identify(body.token)
    if identity is None:
        raise invalid_token()
    response = _state(resources, identity)
    _set_cookie(request, response, body.token, SESSION_S)
    return response


@router.delete("/session", status_code=204)
async def end(request: Request) -> Response:
    """Delete the session cookie; the token itself stays valid."""
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


def _state(resources: Resources, identity: Identity | None) -> Response:
    is_on = resources.authorizer.is_on
    may_read = not is_on or (identity is not None and identity.role != "trainer")
    return json_response(
        SessionState(
            auth="on" if is_on else "off",
            role=None if identity is None else identity.role,
            job_id=None if identity is None else identity.job_id,
            flower_url=resources.settings.gateway_flower_url if may_read else None,
        )
    )
