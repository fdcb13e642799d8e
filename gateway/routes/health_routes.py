"""Routes for supervisors and Prometheus: liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec
import redis
import structlog
from anyio import move_on_after, to_thread
from fastapi import APIRouter, Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from trainwire.gateway.auth.authorization import require
from trainwire.gateway.http.responses import described, described_problems, json_response
from trainwire.gateway.resources import READINESS_THREADS, Resources
from trainwire.gateway.routes.parameters import ResourcesDep
from trainwire.gateway.telemetry import Telemetry
from trainwire.schemas.migrations import WrongSchemaRevision, check_revision
from trainwire.schemas.streams.clients import STREAM_ERRORS, servers_of
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.stores.postgres.connections import postgres_trouble

log = structlog.get_logger("trainwire.gateway.health")

router = APIRouter(tags=["health"])
NO_ANSWER: Final = "does not answer"
CHECK_TIMEOUT_S: Final = 6.0
"""Longest time of one check of `/readyz`; connecting to Postgres or Redis takes at most 5 s."""
MOST_RUNNING: Final = 2 * READINESS_THREADS
"""Number of running checks of one store, abandoned ones included, from which on no further one is started."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The response of a gateway whose process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The state of each store: `ok`, or an error; the HTTP status is 503 if any store has an error.

    `streams` is present if the streams are on other servers than `redis`; it is `ok` if at least one server of a
    cluster is available.
    """

    ready: bool
    checks: dict[str, str]


@router.get("/healthz", responses=described(Health))
async def healthz() -> Response:
    """Return `ok`, which means that the process is alive."""
    # On the event loop: if all threads wait for Postgres, supervisors must not restart the process.
    return json_response(Health())


@router.get("/readyz", responses=described(Readiness))
async def readyz(resources: ResourcesDep) -> Response:
    """Check whether Postgres and Redis respond and the tables are migrated to this version; return the results."""
    checks = {name: await _answer(name, check, resources) for name, check in _checks(resources).items()}
    is_ready = set(checks.values()) == {"ok"}
    return json_response(Readiness(ready=is_ready, checks=checks), 200 if is_ready else 503)


async def _answer(name: str, check: Callable[[], object], resources: Resources) -> str:
    """Return the outcome of a check, or NO_ANSWER after CHECK_TIMEOUT_S; its thread ends when the server answers.

    A server that is frozen, or behind a broken network, ends neither a read nor a statement timeout.
    """
    running = resources.readiness_running[name]
    if len(running) >= MOST_RUNNING:
        return NO_ANSWER

    def run() -> str:
        mark = object()
        running.add(mark)
        try:
            return _outcome(check)
        finally:
            running.discard(mark)

    with move_on_after(CHECK_TIMEOUT_S):
        return await to_thread.run_sync(run, limiter=resources.readiness_threads, abandon_on_cancel=True)
    return NO_ANSWER


def _checks(resources: Resources) -> dict[str, Callable[[], object]]:
    checks: dict[str, Callable[[], object]] = {
        "postgres": lambda: _ask_postgres(resources),
        "redis": resources.redis.ping,
    }
    streams = resources.stream_client
    if streams is not None:
        checks["streams"] = lambda: _ask_streams(streams)
    return checks


@router.get(
    "/metrics",
    dependencies=[Depends(require("viewer"))],
    response_class=Response,
    responses={
        200: {
            "description": "Metrics in Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "# HELP ...\n"}},
        },
        **described_problems(),
    },
)
def metrics(request: Request) -> Response:
    """Return the gateway's own metrics for Prometheus."""
    telemetry: Telemetry = request.app.state.telemetry
    return Response(telemetry.text(), media_type="text/plain")


def _ask_postgres(resources: Resources) -> None:
    with resources.readiness_engine.connect() as connection:
        check_revision(connection)


def _ask_streams(client: redis.Redis) -> None:
    """Ping the Redis servers of the streams; raise one of `STREAM_ERRORS` if none is available.

    One available server is enough: the gateway then accepts callbacks of some jobs.
    """
    errors: list[Exception] = []
    servers = servers_of(client)
    for name, server in servers.items():
        try:
            server.ping()
        except STREAM_ERRORS as exc:
            log.warning("readiness.stream_server_unavailable", server=name, reason=redis_trouble(exc))
            errors.append(exc)
    if len(errors) == len(servers):
        raise errors[0]


def _outcome(check: Callable[[], object]) -> str:
    try:
        check()
    except SQLAlchemyError as exc:
        log.warning("readiness.postgres_unavailable", reason=postgres_trouble(exc))
        return NO_ANSWER
    except STREAM_ERRORS as exc:
        log.warning("readiness.redis_unavailable", reason=redis_trouble(exc))
        return NO_ANSWER
    except WrongSchemaRevision as exc:
        log.warning("readiness.wrong_schema", reason=str(exc))
        return "is not migrated to this version: run `trainwire migrate` of the newest version, or install that"
    return "ok"
