"""`Client`: reads jobs with their metrics, log lines and checkpoints."""

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
from trainwire.schemas.extras import install_hint

PAGE_JOBS: Final = 200


class Jobs(NamedTuple):
    """One page of jobs.

    `next` is the cursor of the next page, None on the last page. `total` is the number of all matching jobs; only
    the first page has it.
    """

    jobs: list[Job]
    next: str | None
    total: int | None


class Client:
    """Reads from a gateway over HTTP, or directly from Postgres. Only `Job.stop` changes anything.

    Args:
        url: A gateway; default: TRAINWIRE_URL, GATEWAY_URL, else the running `trainwire up` of this user.
        token: The access token, if the gateway requires one; default: TRAINWIRE_TOKEN.
        database_url: The URL of a Postgres to read instead of a gateway; default: DATABASE_URL, if no gateway is
            named. It needs `pip install 'trainwire[gateway]'`.

    The constructor and all methods raise `ClientError`, whose message gives the reason and the remedy.
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
        """Return an iterator over the matching jobs, which are fetched page by page.

        Args:
            filter: A condition, such as `status = failed and params.lr < 0.01` (docs/filters.md).
            sort: A field, with `-` before it for descending order, such as `-metrics.accuracy`; by default the
                newest jobs come first.
            columns: Fields whose values each job has in `info.columns`, such as `params.lr`.
            limit: The maximum number of jobs; None for all.
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
        """Return one page of the jobs that `jobs` iterates over, for the same `filter`, `sort` and `columns`.

        `limit` is at most 200. `cursor` is the `next` of the previous page, or None for the first page.
        """
        for name, text in (("filter", filter), ("sort", sort), ("cursor", cursor)):
            check_text(name, text)
        size = checked_whole("limit", limit, 1, PAGE_JOBS) or PAGE_JOBS
        page = self._source.jobs(JobQuery(filter, sort, checked_names(columns, "columns")), size, cursor)
        return Jobs([Job(self._source, info) for info in page.jobs], page.next, page.total)

    def fields(self) -> dict[str, list[str]]:
        """Return the names of the fields that filters can use.

        The key `jobs` has the fields of every job. The keys `params`, `tags` and `metrics` have the names that
        occur in the newest jobs.
        """
        return self._source.fields()

    def job(self, reference: int | str) -> Job:
        """Return the job that `reference` names: by its number, its name, the beginning of either, or `last`.

        The last four or more digits of a number that trainwire has made are accepted, too.

        Warns if `reference` is a number or `last`, and also the name of another job. Raises `JobNotFound` if no
        job matches, or if several match; the message then lists them.
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
        """Return the number of the job that `reference` names, and the number of another job with this name.

        The second number is None if no other job is named like the number or `last` in `reference`.
        """
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
            f"{install_hint(exc.name or 'a package', 'gateway')} to read from Postgres, or name a gateway in "
            "TRAINWIRE_URL"
        ) from exc
    return PostgresSource(database_url or "")
