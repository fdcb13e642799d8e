"""Answers encoded by msgspec, and described in OpenAPI by the same structs: one source for both."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from trainwire.gateway.http.problems import MEDIA_TYPE, Problem

_REFERENCE: Final = "#/components/schemas/{name}"
_described: dict[str, type[msgspec.Struct]] = {Problem.__name__: Problem}
_examples: dict[str, dict[str, Any]] = {}
"""By reference: FastAPI would leave out what is null in them."""
_PROBLEMS: Final = {
    400: "the body is no JSON",
    401: "no token, or none that is valid",
    403: "not with this token, not from this page, not this file",
    404: "there is no such thing",
    409: "not as the job stands now",
    410: "the job was deleted",
    413: "the body is too large",
    422: "a value is not as it should be",
    429: "too many requests",
    502: "another store does not answer, or refuses",
    503: "Postgres or Redis is away, or a store is not set up",
}
_ALWAYS: Final = (401, 403, 422, 429, 503)


def json_answer(document: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a document as JSON."""
    return Response(msgspec.json.encode(document), status, headers, "application/json")


def described(
    document: type[msgspec.Struct], example: dict[str, Any], *problems: int, status: int = 200
) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a route's answers: the document, an example, and the problems it may have."""
    _described[document.__name__] = document
    reference = _REFERENCE.format(name=document.__name__)
    _examples[reference] = example
    content = {"application/json": {"schema": {"$ref": reference}}}
    says = (document.__doc__ or "").partition("\n")[0]
    return {status: {"description": says, "content": content}, **described_problems(*problems)}


def described_problems(*problems: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of the problems that a route may have, besides those that all have."""
    content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(name=Problem.__name__)}}}
    said = sorted({*_ALWAYS, *problems})
    return {status: {"description": _PROBLEMS[status], "content": content} for status in said}


def describe(app: FastAPI) -> None:
    """Have the application's OpenAPI document describe our structs."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                servers=app.servers,
            )
            _, components = msgspec.json.schema_components(_described.values(), ref_template=_REFERENCE)
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            _replace_fastapis_own(document)
            _add_examples(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _replace_fastapis_own(document: dict[str, Any]) -> None:
    """Put our problem document where FastAPI describes an answer that is never given here."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    refusal = described_problems()[422]
    for operations in document["paths"].values():
        for operation in operations.values():
            if "422" in operation["responses"]:
                operation["responses"]["422"] = refusal


def _add_examples(document: dict[str, Any]) -> None:
    for operations in document["paths"].values():
        for operation in operations.values():
            for said in operation["responses"].values():
                content = said.get("content", {}).get("application/json", {})
                example = _examples.get(content.get("schema", {}).get("$ref", ""))
                if example is not None:
                    content["example"] = example
