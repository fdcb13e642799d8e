"""JSON responses: msgspec structs encode them, and describe them in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response, StreamingResponse

from trainwire.gateway.documents.openapi_examples import EXAMPLES
from trainwire.gateway.http.problems import MEDIA_TYPE, Problem

_REFERENCE: Final = "#/components/schemas/{name}"
_documents: dict[str, type[msgspec.Struct]] = {Problem.__name__: Problem}
_PROBLEMS: Final = {
    400: "The body is not valid JSON.",
    401: "No token, or none that is valid.",
    403: "The token, the origin of the page or the file does not allow this.",
    404: "Not found.",
    409: "The state of the job does not allow this.",
    410: "The job was deleted.",
    413: "The body is too large.",
    422: "A value is invalid.",
    429: "Too many requests.",
    502: "Another store is unavailable or refuses the request.",
    503: "Postgres or Redis is unavailable, or a store is not configured.",
}
_ALWAYS: Final = (401, 403, 422, 429, 503)


def json_response(document: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `document` as a JSON response with this status and these additional headers."""
    return Response(msgspec.json.encode(document), status, headers, "application/json")


def streamed(
    pieces: Iterator[bytes], media_type: str, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """Return a response that streams `pieces`.

    The first piece is read before the response begins, so that an error of it, such as a lost connection to
    Postgres, is answered with its own status.
    """
    first = next(pieces, b"")
    return StreamingResponse(chain([first], pieces), headers=headers, media_type=media_type)


def described(
    document: type[msgspec.Struct], *problems: int, status: int = 200
) -> dict[int | str, dict[str, Any]]:
    """Return the argument `responses` of a FastAPI route, from the type of its document and its error statuses.

    `status` is that of a response with the document. The type is also added to the OpenAPI document.
    """
    _documents[document.__name__] = document
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(name=document.__name__)}}}
    summary = (document.__doc__ or "").partition("\n")[0]
    return {status: {"description": summary, "content": content}, **described_problems(*problems)}


def described_problems(*problems: int) -> dict[int | str, dict[str, Any]]:
    """Return the argument `responses` of a FastAPI route for its error statuses `problems`.

    Statuses that every route may return are included.
    """
    content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(name=Problem.__name__)}}}
    statuses = sorted({*_ALWAYS, *problems})
    return {status: {"description": _PROBLEMS[status], "content": content} for status in statuses}


def describe_structs(app: FastAPI) -> None:
    """Make the application's OpenAPI document include our structs and examples."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                servers=app.servers,
            )
            _, components = msgspec.json.schema_components(_documents.values(), ref_template=_REFERENCE)
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            _replace_validation_errors(document)
            _add_examples(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _replace_validation_errors(document: dict[str, Any]) -> None:
    """Describe status 422 as our problem document instead of FastAPI's error type, which is never sent."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for responses in _responses(document):
        if "422" in responses:
            responses["422"] = described_problems()[422]


def _add_examples(document: dict[str, Any]) -> None:
    """Add `EXAMPLES` to the finished OpenAPI document, because FastAPI would remove their nulls."""
    for responses in _responses(document):
        for response in responses.values():
            content = response.get("content", {}).get("application/json", {})
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name in EXAMPLES:
                content["example"] = EXAMPLES[name]


def _responses(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the `responses` object of each operation in an OpenAPI document."""
    for operations in document["paths"].values():
        for operation in operations.values():
            yield operation["responses"]
