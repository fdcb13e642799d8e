"""Whether the gateway lives, and whether its stores do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
import redis
import structlog
from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from trainwire.gateway.auth.authorization import require
from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, described_problems, json_answer
from trainwire.gateway.resources import Resources
from trainwire.gateway.routes.parameters import Found
from trainwire.gateway.telemetry import Telemetry
from trainwire.schemas.migrations import WrongSchemaRevision, check_revision
from trainwire.schemas.streams.clients import STREAM_ERRORS, servers_of
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.stores.postgres.connections import postgres_trouble

log = structlog.get_logger("trainwire.gateway.health")

router = APIRouter(tags=["health"])


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway needs, each `ok` or what is wrong with it; 503 where anything is.

    `streams` is there where they are on other servers than `redis`; of a cluster one that answers is enough.
    """

    ready: bool
    checks: dict[str, str]


@router.get("/healthz", responses=described(Health, examples.HEALTH))
async def healthz() -> Response:
    """Say that the process lives."""
    # On the event loop: all threads may be waiting for Postgres, and this must not be taken for a hung process.
    return json_answer(Health())


@router.get("/readyz", responses=described(Readiness, examples.READINESS))
async def readyz(found: Found) -> Response:
    """Report whether Postgres and Redis answer, and whether the tables have what this version uses."""
    checks = await to_thread.run_sync(_checks, found, limiter=found.readiness_threads)
    is_ready = set(checks.values()) == {"ok"}
    return json_answer(Readiness(ready=is_ready, checks=checks), 200 if is_ready else 503)


def _checks(found: Resources) -> dict[str, str]:
    checks = {"postgres": _outcome(lambda: _ask_postgres(found)), "redis": _outcome(found.redis.ping)}
    streams = found.stream_client
    if streams is not None:
        checks["streams"] = _outcome(lambda: _ask_streams(streams))
    return checks


@router.get(
    "/metrics",
    dependencies=[Depends(require("viewer"))],
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "# HELP ...\n"}},
        },
        **described_problems(),
    },
)
def metrics(request: Request) -> Response:
    """Return what the gateway counts of itself, for Prometheus."""
    telemetry: Telemetry = request.app.state.telemetry
    return Response(telemetry.text(), media_type="text/plain")


def _ask_postgres(found: Resources) -> None:
    with found.readiness_engine.connect() as connection:
        check_revision(connection)


def _ask_streams(client: redis.Redis) -> None:
    """Raise one of `STREAM_ERRORS` where no server answers: while one does, some jobs' callbacks are taken."""
    troubles: list[Exception] = []
    servers = servers_of(client)
    for name, server in servers.items():
        try:
            server.ping()
        except STREAM_ERRORS as exc:
            log.warning("readiness.stream_server_away", server=name, reason=redis_trouble(exc))
            troubles.append(exc)
    if len(troubles) == len(servers):
        raise troubles[0]


def _outcome(check: Callable[[], object]) -> str:
    try:
        check()
    except SQLAlchemyError as exc:
        log.warning("readiness.postgres_away", reason=postgres_trouble(exc))
        return "does not answer"
    except STREAM_ERRORS as exc:
        log.warning("readiness.redis_away", reason=redis_trouble(exc))
        return "does not answer"
    except WrongSchemaRevision as exc:
        log.warning("readiness.wrong_schema", reason=str(exc))
        return "has not the tables of this version: run `trainwire migrate` of the newest one, or install that"
    return "ok"
