"""`Client`: reads jobs, their metrics, logs and checkpoints back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from trainwire.client.addresses import find_address
from trainwire.client.errors import ClientError, JobNotFound
from trainwire.client.http_source import HttpSource
from trainwire.client.job import Job
from trainwire.client.source import Source


class Client:
    """Reads from a gateway over HTTP, or straight from Postgres; it changes nothing, except by `Job.stop`.

    Args:
        url: The gateway; default: TRAINWIRE_URL, GATEWAY_URL, else the running `trainwire up` of this user.
        token: For a gateway that requires one; default: TRAINWIRE_TOKEN.
        database_url: A Postgres instead of a gateway; default: DATABASE_URL, where no gateway is named. It needs
            `pip install 'trainwire[gateway]'`.

    Raises `ClientError`, here and in all methods, with the reason and the remedy.
    """

    def __init__(
        self, url: str | None = None, *, token: str | None = None, database_url: str | None = None
    ) -> None:
        address = find_address(url, token, database_url)
        self._source = _source(address.url, address.token, address.database_url)

    def __repr__(self) -> str:
        return f"Client({self._source!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._source.close()

    def jobs(
        self,
        filter: str | None = None,  # noqa: A002 - its name in HTTP and on the command line
        *,
        sort: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Yield jobs, the newest first; `limit` is the most, by default all.

        Args:
            filter: Such as `status = failed and params.lr < 0.01` (docs/filters.md).
            sort: A field, with `-` before it for descending order, such as `-metrics.accuracy`.
            limit: The most jobs; None: all.
        """
        for info in self._source.jobs(filter, sort, limit):
            yield Job(self._source, info)

    def job(self, reference: int | str) -> Job:
        """Return the job of a number, a name, the beginning of either, or `last`.

        A number or `last` that is also the name of another job is a warning. Raises `JobNotFound`, with the
        candidates where several fit.
        """
        if isinstance(reference, str):
            reference = self._number(reference)
        return Job(self._source, self._source.job(reference))

    def _number(self, reference: str) -> int:
        if not reference.strip():
            raise JobNotFound("the job's name is empty: client.jobs() yields numbers and names")
        found = self._source.find(reference)
        if found.total > 1:
            shown = [f"  {number}  {name or ''}  {status}" for number, name, status in found.jobs]
            more = [f"  and {found.total - len(shown):,} more"] if found.total > len(shown) else []
            first = f"{found.total:,} jobs fit {reference!r}: choose one by its number, the newest first"
            raise JobNotFound("\n".join([first, *shown, *more]))
        if not found.jobs:
            reason = "was deleted" if found.total else "is not in the database"
            raise JobNotFound(f"job {reference!r} {reason}: client.jobs() yields numbers and names")
        number = found.jobs[0][0]
        if found.also_named is not None:
            warnings.warn(
                f"{reference} is job {number}, and also the name of job {found.also_named}: use the number "
                f"{found.also_named} for that one",
                stacklevel=3,
            )
        return number


def _source(url: str | None, token: str | None, database_url: str | None) -> Source:
    if url is not None:
        return HttpSource(url, token)
    try:
        from trainwire.client.postgres_source import PostgresSource  # noqa: PLC0415 - of the extra `gateway`
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("trainwire"):
            raise
        raise ClientError(
            f"{exc.name} is not installed, which reads from Postgres: pip install 'trainwire[gateway]', or name a "
            "gateway with TRAINWIRE_URL"
        ) from exc
    return PostgresSource(database_url or "")
