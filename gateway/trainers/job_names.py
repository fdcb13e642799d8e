"""Checks that a token that is limited to job names is used for jobs with such names only.

A job has its name in Postgres once its first metrics are stored. Until then Redis keeps the name that the first
request with such a token gave.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, cast

import redis
import structlog
from sqlalchemy import Engine, select

from trainwire.gateway.auth.authorization import Forbidden, Identity
from trainwire.gateway.auth.token_cache import FRESH_S, OUTAGE_S, UNAVAILABLE, put
from trainwire.gateway.auth.tokens import is_named_by
from trainwire.gateway.http.problems import ProblemError, problem, shown
from trainwire.schemas.keys import (
    JOB_DELETED_FIELD,
    SHARDS_KEY,
    acks_key,
    new_name_key,
    read_shards,
    shard_of,
)
from trainwire.schemas.tables import training_jobs
from trainwire.stores.postgres.connections import postgres_trouble

NEW_NAME_TTL_S: Final = 7 * 24 * 3600
MAX_CACHED: Final = 10_000

log = structlog.get_logger("trainwire.gateway.trainers.job_names")


class _Cached(NamedTuple):
    name: str
    fresh_until: float
    outage_until: float


class JobNames:
    """Looks up the names of jobs, with a cache, for tokens that are limited to job names; thread-safe."""

    def __init__(self, engine: Engine, client: redis.Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._cached: OrderedDict[int, _Cached] = OrderedDict()

    def check(self, identity: Identity, job_id: int, given: Sequence[str]) -> None:
        """Raise `Forbidden` unless the token's `job_names` match the job's name and all names in `given`.

        `given` are the names that the messages of the request give to the job. If the job has no name yet and
        `given` is empty, a `ProblemError` (409) is raised; the request can be repeated with a name. While Postgres
        is unavailable, a name is used that was read at most `OUTAGE_S` seconds ago. A deleted job is allowed: its
        messages are not stored.
        """
        pattern = identity.job_names
        if pattern is None:
            return
        only = f"the token is for runs named {pattern} only"
        for name in given:
            if not is_named_by(pattern, name):
                raise Forbidden(
                    f"{only}, and a message names job {job_id} {shown(name)!r}: give the run such a name, "
                    "or use another token"
                )
        known = self._name_of(job_id, given[0] if given else None)
        if known is not None and not is_named_by(pattern, known):
            raise Forbidden(
                f"{only}, and job {job_id} belongs to {shown(known)!r}: use a job number of your own, "
                "or another token"
            )
        if known is None and not self._is_deleted(job_id):
            detail = f'{only}, and job {job_id} has no name yet: name it first, Run(name="...")'
            raise ProblemError(problem(409, "no-name-yet", "The job has no name yet", detail))

    def _name_of(self, job_id: int, given: str | None) -> str | None:
        now = self._clock()
        with self._lock:
            cached = self._cached.get(job_id)
        if cached is not None and now < cached.fresh_until:
            return cached.name
        try:
            name = self._read(job_id, given)
        except UNAVAILABLE as exc:
            if cached is None or now >= cached.outage_until:
                raise
            log.warning("job_name.from_cache", job_id=job_id, reason=postgres_trouble(exc))
            return cached.name
        if name is not None:
            with self._lock:
                put(self._cached, job_id, _Cached(name, now + FRESH_S, now + OUTAGE_S), MAX_CACHED)
        return name

    def _read(self, job_id: int, given: str | None) -> str | None:
        """Return the job's name from Postgres, or else from Redis; None if it has none yet.

        For a job that is not in Postgres, `given` is first stored in Redis unless a name is there already. Raises
        `Forbidden` if the job is in Postgres and has no name.
        """
        with self._engine.connect() as connection:
            found = select(training_jobs.c.name).where(training_jobs.c.id == job_id)
            row = connection.execute(found).one_or_none()
        if row is not None and row.name is not None:
            return str(row.name)
        shards = read_shards(cast("bytes | None", self._client.get(SHARDS_KEY)))
        key = new_name_key(shard_of(job_id, shards), job_id)
        if row is None and given is not None and not self._is_deleted(job_id):
            self._client.set(key, given.encode("utf-8", "surrogatepass"), nx=True, ex=NEW_NAME_TTL_S)
        name = cast("bytes | None", self._client.get(key))
        if name is None and row is not None:
            raise Forbidden(
                f"job {job_id} belongs to a run without a name, and the token is for names only: use a job number "
                "of your own, or another token"
            )
        return None if name is None else name.decode("utf-8", "surrogatepass")

    def _is_deleted(self, job_id: int) -> bool:
        return bool(self._client.hexists(acks_key(job_id), JOB_DELETED_FIELD))
