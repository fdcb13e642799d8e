"""Problem documents (RFC 9457): each error names the invalid value and a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import redis
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from msgspec.structs import replace
from redis.exceptions import RedisClusterException
from sqlalchemy.exc import DataError, DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from structlog.contextvars import bound_contextvars

from trainwire.gateway.auth.authorization import Forbidden, Unauthorized
from trainwire.schemas.migrations import WrongSchemaRevision
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.schemas.wire.validation import InvalidMessage
from trainwire.stores.files.presign_policy import NotServed
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, S3Unavailable
from trainwire.stores.loki.http import LokiUnavailable
from trainwire.stores.mlflow.http import MlflowRefused, MlflowUnavailable
from trainwire.stores.postgres.connections import has_lost_statements, is_unavailable, postgres_trouble
from trainwire.stores.postgres.deletion import StillAtWork, StillDeleting

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
MAX_SHOWN_CHARS: Final = 200
"""Maximum number of characters of an invalid value that a problem document quotes."""
_TYPE: Final = "urn:trainwire:problem:"
QUERY_CANCELED: Final = "57014"
READ_ONLY: Final = "25006"
_NOT_MIGRATED: Final = frozenset({"42P01", "42703"})
"""SQLSTATEs undefined_table and undefined_column, which mean that the database lacks a migration."""

log = structlog.get_logger("trainwire.gateway.http.problems")


class WrongField(msgspec.Struct, frozen=True, kw_only=True):
    """An invalid field of a request: its path, its value as text, and the error."""

    field: str
    value: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A problem document (RFC 9457); programs should use `type` only, the texts may change."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    errors: list[WrongField] = []

    @property
    def headers(self) -> dict[str, str]:
        """Additional response headers: `Retry-After` for 429 and 503, `WWW-Authenticate` for 401."""
        if self.status in {429, 503}:
            return {"Retry-After": str(RETRY_AFTER_S)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


class ProblemError(Exception):
    """Raised in a route to respond with the problem document `problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def problem(status: int, name: str, title: str, detail: str) -> Problem:
    """Create a problem document; `name` is the last part of its `type`, and `detail` names value and remedy."""
    return Problem(type=_TYPE + name, title=title, status=status, detail=detail)


def unknown_job(job_id: int) -> ProblemError:
    """Return the 404 error for a job that is not in Postgres."""
    detail = f"no job {job_id} in the database: check the number (GET /jobs lists all)"
    return ProblemError(problem(404, "unknown-job", "Job not found", detail))


def deleted_job(job_id: int) -> ProblemError:
    """Return the 410 error for a deleted job."""
    detail = f"job {job_id} was deleted, and its messages are not stored any more (GET /jobs/{job_id}/deletion)"
    return ProblemError(problem(410, "job-deleted", "The job was deleted", detail))


def not_found(detail: str) -> ProblemError:
    """Return the 404 error for anything that does not exist, except a job (see `unknown_job`)."""
    return ProblemError(problem(404, "not-found", "Not found", detail))


def not_configured(detail: str) -> ProblemError:
    """Return the 503 error for a request that needs a store which is not configured."""
    return ProblemError(problem(503, "not-configured", "The store is not configured", detail))


def wrong_value(field: str, value: object, detail: str) -> ProblemError:
    """Return the 422 error for one invalid field of a request."""
    return ProblemError(_wrong_fields([WrongField(field=field, value=shown(value), detail=detail)]))


def problem_response(document: Problem, path: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return the HTTP response with a problem document; `path` becomes its `instance`.

    `headers` are added to those of the document.
    """
    content = msgspec.json.encode(replace(document, instance=path) if path else document)
    return Response(content, document.status, {**document.headers, **(headers or {})}, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Register exception handlers on `app` that respond to each exception with a problem document."""
    for kind in (*_TRANSLATED, DBAPIError, ProblemError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _handle)


def shown(value: object) -> str:
    """Return a value as text that can be encoded as UTF-8, truncated to `MAX_SHOWN_CHARS`."""
    text = value if isinstance(value, str) else repr(value)
    cut = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"
    return cut.encode("utf-8", "backslashreplace").decode()


async def _handle(request: Request, exc: Exception) -> Response:
    headers = exc.headers if isinstance(exc, HTTPException) else None  # for example `Allow`
    job_id = request.path_params.get("job_id")
    with bound_contextvars(**({} if job_id is None else {"job_id": job_id})):  # for the log events
        document = problem_of(exc)
    return problem_response(document, shown(request.url.path), headers)


def problem_of(exc: Exception) -> Problem:
    """Return the problem document for an exception; an unexpected exception is logged and has status 500."""
    match exc:
        case ProblemError():
            return exc.problem
        case RequestValidationError():
            return _wrong_fields([_wrong_field(error, exc.body) for error in exc.errors()])
        case HTTPException():
            return problem(exc.status_code, "http", exc.detail, exc.detail)
        case DBAPIError() if (found := _of_postgres(exc)) is not None:
            return found
    for kind, (status, name, title, remedy) in _TRANSLATED.items():
        if isinstance(exc, kind):
            reason = redis_trouble(exc) if isinstance(exc, redis.RedisError) else str(exc)
            return problem(status, name, title, f"{reason or title}{remedy}")
    log.error("request.failed", exc_info=exc)
    return problem(500, "unexpected", "Unexpected error", "see the gateway's log for this request")


def _of_postgres(exc: DBAPIError) -> Problem | None:
    """Return the problem document for an error of Postgres; None if the error is unexpected."""
    code = getattr(exc.orig, "sqlstate", None)
    if isinstance(exc, DataError):
        return problem(422, "wrong-value", _INVALID, "Postgres cannot store a value of this request: change it")
    if isinstance(exc, ProgrammingError) and code in _NOT_MIGRATED:
        return problem(503, "not-migrated", _NOT_MIGRATED_TITLE, "run `trainwire migrate`, then try again")
    if isinstance(exc, OperationalError) or is_unavailable(exc) or has_lost_statements(exc):
        log.warning("postgres.unavailable", reason=postgres_trouble(exc))
        if code == QUERY_CANCELED:
            return problem(503, "postgres-away", _NO_POSTGRES, "Postgres took too long to answer: try again")
        reason = "is read-only" if code == READ_ONLY else "does not answer"
        return problem(503, "postgres-away", _NO_POSTGRES, f"Postgres {reason} (DATABASE_URL): try again")
    return None


def _wrong_fields(wrong: list[WrongField]) -> Problem:
    detail = "; ".join(f"{error.field} {error.value!r}: {error.detail}" for error in wrong[:3])
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return replace(problem(422, "wrong-value", _INVALID, detail + more), errors=wrong[:20])


def _wrong_field(error: Mapping[str, Any], body: object) -> WrongField:
    if error["type"] == "json_invalid":
        at, text = error["loc"][-1], body if isinstance(body, str) else ""
        detail = f"{error['ctx']['error']} at character {at}: send JSON"
        return WrongField(field="body", value=shown(text[max(at - 20, 0) : at + 20]), detail=shown(detail))
    if isinstance(error.get("input"), bytes):
        detail = "is not read as JSON: send it with Content-Type: application/json"
        return WrongField(field="body", value=shown(error["input"]), detail=detail)
    place = [str(part) for part in error["loc"][1:]] or [str(error["loc"][0])]
    return WrongField(
        field=shown(".".join(place)), value=shown(error.get("input")), detail=shown(str(error["msg"]))
    )


_INVALID: Final = "A value is invalid"
_NO_POSTGRES: Final = "Postgres is unavailable"
_NO_REDIS: Final = "Redis is unavailable"
_NOT_MIGRATED_TITLE: Final = "The database is not migrated to this version"
_TRANSLATED: Final[dict[type[Exception], tuple[int, str, str, str]]] = {
    Unauthorized: (401, "unauthorized", "A token is required", ""),
    Forbidden: (403, "forbidden", "The token does not allow this", ""),
    InvalidMessage: (422, "wrong-value", _INVALID, ""),
    ClientDisconnect: (400, "disconnected", "The client closed the connection before the end of its request", ""),
    NoConnectionLeft: (503, "postgres-away", _NO_POSTGRES, ": all connections are in use, try again"),
    WrongSchemaRevision: (503, "not-migrated", _NOT_MIGRATED_TITLE, ""),
    redis.RedisError: (503, "redis-away", _NO_REDIS, " (REDIS_URL): try again"),
    RedisClusterException: (503, "redis-away", _NO_REDIS, " (STREAMS_URL): try again"),
    LokiUnavailable: (502, "loki-away", "Loki is unavailable", " (LOKI_URL)"),
    MlflowUnavailable: (502, "mlflow-away", "MLflow is unavailable", " (MLFLOW_TRACKING_URI)"),
    MlflowRefused: (502, "mlflow-refused", "MLflow refuses the request", " (MLFLOW_TRACKING_URI)"),
    S3Unavailable: (502, "s3-away", "The object store is unavailable", " (AWS_ENDPOINT_URL)"),
    NotAllowed: (502, "s3-refused", "The object store refuses the request", " (AWS_ACCESS_KEY_ID)"),
    StillAtWork: (409, "still-at-work", "The job has not ended", " (?force=true)"),
    StillDeleting: (409, "still-deleting", "The job is not deleted completely", ""),
    NotServed: (403, "not-lent", "The gateway signs no URL for this file", ""),
    NoSuchObject: (404, "not-found", "Not found", ""),
}
