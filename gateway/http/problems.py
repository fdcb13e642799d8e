"""What goes wrong, as problem documents (RFC 9457): each says what was wrong, with which value, and what to do."""

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
from starlette.responses import Response

from trainwire.gateway.auth.authorization import Forbidden, Unauthorized
from trainwire.schemas.migrations import WrongSchemaRevision
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.schemas.validation import InvalidMessage
from trainwire.stores.files.presign_policy import NotServed
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, S3Unavailable
from trainwire.stores.loki.http import LokiUnavailable
from trainwire.stores.mlflow.http import MlflowRefused, MlflowUnavailable
from trainwire.stores.postgres.connections import has_lost_statements, is_unavailable, postgres_trouble
from trainwire.stores.postgres.deletion import StillAtWork, StillDeleting

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
MAX_SHOWN_CHARS: Final = 200
"""Of a value that was wrong: enough to know it again."""
_TYPE: Final = "urn:trainwire:problem:"
_NOT_MIGRATED: Final = frozenset({"42P01", "42703"})
"""Postgres' undefined_table and undefined_column."""

log = structlog.get_logger("trainwire.gateway.http.problems")


class WrongField(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a request that is not as it should be, with the value that came."""

    field: str
    value: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A problem document; `type` is a stable name for programs, all else is for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    errors: list[WrongField] = []

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says beside the document."""
        if self.status in {429, 503}:
            return {"Retry-After": str(RETRY_AFTER_S)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


class ProblemError(Exception):
    """Raised by a route: the request ends with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def problem(status: int, name: str, title: str, detail: str) -> Problem:
    """Return a problem; `name` becomes its type."""
    return Problem(type=_TYPE + name, title=title, status=status, detail=detail)


def unknown_job(job_id: int) -> ProblemError:
    """Return the error for a job of which no message has been stored."""
    return ProblemError(problem(404, "unknown-job", "There is no such job", f"no job {job_id} in the database"))


def deleted_job(job_id: int) -> ProblemError:
    """Return the error for a job that was deleted."""
    detail = f"job {job_id} was deleted: nothing more of it is stored (GET /jobs/{job_id}/deletion)"
    return ProblemError(problem(410, "job-deleted", "The job was deleted", detail))


def not_there(detail: str) -> ProblemError:
    """Return the error for something else that is not there."""
    return ProblemError(problem(404, "not-found", "There is no such thing here", detail))


def not_configured(detail: str) -> ProblemError:
    """Return the error for a store that this gateway was not told of."""
    return ProblemError(problem(503, "not-configured", "This store is not set up here", detail))


def wrong_value(field: str, value: object, detail: str) -> ProblemError:
    """Return the error for one field with a wrong value."""
    return ProblemError(_wrong_fields([WrongField(field=field, value=shown(value), detail=detail)]))


def answer(said: Problem, path: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """Return the response that carries a problem."""
    content = msgspec.json.encode(replace(said, instance=path) if path else said)
    return Response(content, said.status, {**said.headers, **(headers or {})}, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Have every error that may leave a route answered with a problem document."""
    for kind in (*_TRANSLATED, ProblemError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _handle)


def shown(value: object) -> str:
    """Return a value as a problem shows it: short, and always text that can be encoded."""
    said = value if isinstance(value, str) else repr(value)
    cut = said if len(said) <= MAX_SHOWN_CHARS else f"{said[:MAX_SHOWN_CHARS]}…"
    return cut.encode("utf-8", "backslashreplace").decode()


async def _handle(request: Request, exc: Exception) -> Response:
    headers = exc.headers if isinstance(exc, HTTPException) else None  # which methods are allowed, for one
    return answer(_problem_of(exc), shown(request.url.path), headers)


def _problem_of(exc: Exception) -> Problem:
    match exc:
        case ProblemError():
            return exc.problem
        case RequestValidationError():
            return _wrong_fields([_wrong_field(error) for error in exc.errors()])
        case HTTPException():
            return problem(exc.status_code, "http", exc.detail, exc.detail)
        case DBAPIError():
            return _of_postgres(exc)
    for kind, (status, name, title, remedy) in _TRANSLATED.items():
        if isinstance(exc, kind):
            said = redis_trouble(exc) if isinstance(exc, redis.RedisError) else str(exc)
            return problem(status, name, title, f"{said or title}{remedy}")
    log.error("request.failed", exc_info=exc)
    return problem(500, "unexpected", "Something unexpected went wrong", "the gateway's log says more")


def _of_postgres(exc: DBAPIError) -> Problem:
    code = getattr(exc.orig, "sqlstate", None)
    if isinstance(exc, DataError):
        return problem(422, "wrong-value", "A value is not as it should be", "Postgres cannot hold such a value")
    if isinstance(exc, ProgrammingError) and code in _NOT_MIGRATED:
        return problem(
            503, "not-migrated", "The database is not at our revision", "run `trainwire migrate`, then try again"
        )
    if isinstance(exc, OperationalError) or is_unavailable(exc) or has_lost_statements(exc):
        said = {"57014": "took too long", "25006": "is read-only"}.get(code or "", "does not answer")
        log.warning("postgres.away", reason=postgres_trouble(exc))
        return problem(503, "postgres-away", "Postgres is away", f"Postgres {said} (DATABASE_URL): try again")
    log.error("request.failed", exc_info=exc)
    return problem(500, "unexpected", "Something unexpected went wrong", "the gateway's log says more")


def _wrong_fields(wrong: list[WrongField]) -> Problem:
    detail = "; ".join(f"{error.field} {error.value!r}: {error.detail}" for error in wrong[:3])
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    said = problem(422, "wrong-value", "A value is not as it should be", detail + more)
    return replace(said, errors=wrong[:20])


def _wrong_field(error: Mapping[str, Any]) -> WrongField:
    place = [str(part) for part in error["loc"][1:]] or [str(error["loc"][0])]
    return WrongField(
        field=shown(".".join(place)), value=shown(error.get("input")), detail=shown(str(error["msg"]))
    )


_TRANSLATED: Final[dict[type[Exception], tuple[int, str, str, str]]] = {
    Unauthorized: (401, "unauthorized", "A token is needed", ""),
    Forbidden: (403, "forbidden", "This token may not do this", ""),
    InvalidMessage: (422, "wrong-value", "A value is not as it should be", ""),
    NoConnectionLeft: (503, "postgres-away", "Postgres is away", ": all connections are in use, try again"),
    WrongSchemaRevision: (503, "not-migrated", "The database is not at our revision", ""),
    DBAPIError: (503, "postgres-away", "Postgres is away", ""),
    redis.RedisError: (503, "redis-away", "Redis is away", " (REDIS_URL): try again"),
    RedisClusterException: (503, "redis-away", "Redis is away", " (STREAMS_URL): try again"),
    LokiUnavailable: (502, "loki-away", "Loki is away", " (LOKI_URL)"),
    MlflowUnavailable: (502, "mlflow-away", "MLflow is away", " (MLFLOW_TRACKING_URI)"),
    MlflowRefused: (502, "mlflow-refused", "MLflow refuses this", " (MLFLOW_TRACKING_URI)"),
    S3Unavailable: (502, "s3-away", "The object store is away", " (AWS_ENDPOINT_URL)"),
    NotAllowed: (502, "s3-refused", "The object store refuses this", " (AWS_ACCESS_KEY_ID)"),
    StillAtWork: (409, "still-at-work", "The job has not ended", " (?force=true)"),
    StillDeleting: (409, "still-deleting", "The job is not deleted completely", ""),
    NotServed: (403, "not-lent", "The gateway does not lend this", ""),
    NoSuchObject: (404, "not-found", "There is no such thing here", ""),
}
