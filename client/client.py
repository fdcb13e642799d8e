"""`Client`: reads jobs, their metrics, logs and checkpoints back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from trainwire.client.addresses import find_address
from trainwire.client.arguments import check_text, checked_names, checked_whole
from trainwire.client.errors import ClientError, JobNotFound
from trainwire.client.http_source import HttpSource
from trainwire.client.job import Job
from trainwire.client.source import JobQuery, Source

PAGE_JOBS: Final = 200


class Jobs(NamedTuple):
    """One page of jobs, the cursor of the next (None on the last), and how many match, on the first page."""

    jobs: list[Job]
    next: str | None
    total: int | None


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
        for name, value in (("url", url), ("token", token), ("database_url", database_url)):
            check_text(name, value)
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
        columns: Sequence[str] = (),
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Return jobs, the newest first, read as they are needed; `limit` is the most, by default all.

        Args:
            filter: Such as `status = failed and params.lr < 0.01` (docs/filters.md).
            sort: A field, with `-` before it for descending order, such as `-metrics.accuracy`.
            columns: Fields whose values each job has in `info.columns`, such as `params.lr`.
            limit: The most jobs; None: all.
        """
        check_text("filter", filter)
        check_text("sort", sort)
        left = checked_whole("limit", limit)
        return self._all_jobs(filter, sort, checked_names(columns, "columns"), left)

    def _all_jobs(
        self,
        filter: str | None,  # noqa: A002 - as above
        sort: str | None,
        columns: Sequence[str],
        left: int | None,
    ) -> Iterator[Job]:
        cursor = None
        while left is None or left > 0:
            size = PAGE_JOBS if left is None else min(PAGE_JOBS, left)
            page = self.job_page(filter, sort=sort, columns=columns, limit=size, cursor=cursor)
            yield from page.jobs
            left, cursor = None if left is None else left - size, page.next
            if cursor is None:
                return

    def job_page(
        self,
        filter: str | None = None,  # noqa: A002 - its name in HTTP and on the command line
        *,
        sort: str | None = None,
        columns: Sequence[str] = (),
        limit: int = PAGE_JOBS,
        cursor: str | None = None,
    ) -> Jobs:
        """Return one page of `jobs`, at most 200; `cursor` is the `next` of the page before."""
        for name, text in (("filter", filter), ("sort", sort), ("cursor", cursor)):
            check_text(name, text)
        size = checked_whole("limit", limit, 1, PAGE_JOBS) or PAGE_JOBS
        page = self._source.jobs(JobQuery(filter, sort, checked_names(columns, "columns")), size, cursor)
        return Jobs([Job(self._source, info) for info in page.jobs], page.next, page.total)

    def fields(self) -> dict[str, list[str]]:
        """Return the fields for filters: `jobs` of all jobs; `params`, `tags` and `metrics` of the newest jobs."""
        return self._source.fields()

    def job(self, reference: int | str) -> Job:
        """Return the job of a number, a name, the beginning of either, or `last`.

        A number or `last` that is also the name of another job is a warning. Raises `JobNotFound`, with the
        candidates where several fit.
        """
        if not isinstance(reference, str):
            given = checked_whole("reference", reference, 1)
            if given is None:
                raise ClientError("reference=None is no job: give a number, a name, or 'last'")
            return Job(self._source, self._source.job(given))
        number, also_named = self._number(reference)
        if also_named is not None:
            warnings.warn(
                f"{reference} is job {number}, and also the name of job {also_named}: use the number "
                f"{also_named} for that one",
                stacklevel=2,
            )
        return Job(self._source, self._source.job(number), also_named)

    def _number(self, reference: str) -> tuple[int, int | None]:
        """Return the number of a job, and that of another with the reference as its name."""
        if not reference.strip():
            raise JobNotFound("the job's name is empty: list the jobs for their numbers and names")
        found = self._source.find(reference)
        if found.total > 1:
            shown = [f"  {number}  {name or ''}  {status}" for number, name, status in found.jobs]
            more = [f"  and {found.total - len(shown):,} more"] if found.total > len(shown) else []
            first = f"{found.total:,} jobs fit {reference!r}: choose one by its number, the newest first"
            raise JobNotFound("\n".join([first, *shown, *more]))
        if not found.jobs:
            reason = "was deleted" if found.total else "is not in the database"
            raise JobNotFound(f"job {reference!r} {reason}: list the jobs for their numbers and names")
        return found.jobs[0][0], found.also_named


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
