"""Lists jobs page by page, filtered and sorted by Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Text,
    and_,
    any_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from trainwire.schemas.filters.job_fields import Field
from trainwire.schemas.filters.job_filter import Expression, fields_in
from trainwire.schemas.non_finite import shown_value
from trainwire.schemas.tables import training_jobs
from trainwire.stores.postgres.columns import MOST_LISTED_NAMES, job_columns
from trainwire.stores.postgres.jobs.filter_conditions import Condition, sql_condition
from trainwire.stores.postgres.jobs.job_lookup import Job, is_end_of_made_id
from trainwire.stores.postgres.jobs.job_values import (
    as_number,
    is_float,
    json_of,
    shown_name,
    shown_tags,
    value_of,
    without_nan,
)

Sort: TypeAlias = tuple[Field, bool]
"""A field, and whether the order is descending."""
Key: TypeAlias = Decimal | float | int | datetime | str | bool | None
MAX_VALUE_CHARS: Final = 300
"""Number of characters to which a column's value is shortened in a list."""
_jobs: Final = training_jobs.c


class JobPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The position of a job in a sorted list: its sort keys, its creation time and its number.

    Jobs with equal keys are ordered by creation time and number, newest first.
    """

    keys: tuple[Key, ...] = ()
    created_at: datetime
    job_id: int


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions on listed jobs, and their order; an empty value is no condition.

    Args:
        where: a filter; if it uses the field `archived`, `with_archived` has no effect.
        statuses: the allowed statuses.
        name: a part of a job's name; case is ignored.
        search: a part of a job's name or of one of its tags, or the first digits of its number.
        sort: a field, and whether the order is descending. Jobs without a value come last. Default: newest first.
        after: the position of the last job on the previous page.
        with_archived: whether archived jobs are included.
        now: the time up to which the `duration` of running jobs is computed; the same for all pages.
    """

    where: Expression | None = None
    statuses: Sequence[str] = ()
    name: str | None = None
    search: str | None = None
    sort: Sort | None = None
    after: JobPlace | None = None
    with_archived: bool = False
    now: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))


def find_places(connection: Connection, query: JobQuery, limit: int) -> list[JobPlace]:
    """Return the positions of the next matching jobs after `query.after`, at most `limit`."""
    sorted_by, is_descending = _sort_keys(query)
    columns: list[ColumnElement[Any]] = [_jobs.created_at, _jobs.id, *sorted_by]
    found = select(*columns).where(_condition(query))
    if sorted_by and query.after is not None:
        # The condition names each key several times; without OFFSET, Postgres would compute it each time.
        columns = [*found.offset(0).subquery().c]
        found = select(*columns)
    if query.after is not None:
        found = found.where(_after(columns, query.after, is_descending=is_descending))
    created_at, job_id, *keys = columns
    order = [(key.desc() if is_descending else key.asc()).nulls_last() for key in keys]
    newest_first = found.order_by(*order, created_at.desc(), job_id.desc())
    rows = connection.execute(newest_first.limit(limit))
    return [JobPlace(keys=tuple(found), created_at=at, job_id=job) for at, job, *found in rows]


def place_fields(place: JobPlace) -> list[Any]:
    """Convert a position to a list of JSON values, for use as a page cursor."""
    keys = [
        None if key is None else key.isoformat() if isinstance(key, datetime) else str(key) for key in place.keys
    ]
    return [place.created_at.isoformat(), place.job_id, *keys]


def place_from(fields: Sequence[Any], sort: Sort | None) -> JobPlace:
    """Convert a list made by `place_fields` back to a position.

    Raises `ValueError`, `TypeError` or `ArithmeticError` if it is not valid for this sort order.
    """
    created_at, job_id, *keys = fields
    parsed = zip(_key_parsers(sort), keys, strict=True)
    place = JobPlace(
        created_at=datetime.fromisoformat(created_at),
        job_id=int(job_id),
        keys=tuple(None if key is None else parse(key) for parse, key in parsed),
    )
    if place.created_at.tzinfo is None:
        raise ValueError("a time without a zone")
    return place


def _key_parsers(sort: Sort | None) -> tuple[Callable[[str], Key], ...]:
    if sort is None:
        return ()
    match sort[0].type:
        case "free":
            return Decimal, _text
        case "text" | "word":
            return (_text,)
        case "time":
            return (datetime.fromisoformat,)
        case "truth":
            return (lambda text: text == "True",)
    return (float if is_float(sort[0]) else int,)


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(key)
    key.encode()  # raises `ValueError` for lone surrogates
    return key


def count_jobs(connection: Connection, query: JobQuery) -> int:
    """Return the number of matching jobs on all pages; `query.after` is ignored."""
    return int(
        connection.execute(select(func.count()).select_from(training_jobs).where(_condition(query))).scalar_one()
    )


class JobGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The number of jobs that have the same value of a field, and of the running and failed ones among them.

    `value` is None for jobs without a value.
    """

    value: str | None
    jobs: int
    running: int
    failed: int


def find_groups(connection: Connection, query: JobQuery, field: Field, limit: int) -> list[JobGroup]:
    """Group the matching jobs by the value of `field`; return at most `limit` groups.

    The group with the newest job comes first. `query.after` and `query.sort` are ignored.
    """
    value = cast(value_of(field, query.now), Text).label("value")
    jobs, newest = func.count().label("jobs"), func.max(_jobs.created_at)
    counts = [func.count().filter(_jobs.status == status).label(status) for status in ("running", "failed")]
    found = select(value, jobs, *counts).where(_condition(query)).group_by(value)
    rows = connection.execute(found.order_by(newest.desc(), value).limit(limit)).mappings()
    return [JobGroup(**row) for row in rows]


def matching_jobs(connection: Connection, where: Expression, job_ids: Iterable[int]) -> set[int]:
    """Return the numbers in `job_ids` whose jobs match the filter `where`."""
    wanted = select(_jobs.id).where(_is_one_of(list(job_ids)), sql_condition(where, datetime.now(UTC)))
    return set(connection.execute(wanted).scalars())


def read_jobs(connection: Connection, job_ids: Sequence[int]) -> list[Job]:
    """Return the jobs with these numbers, in the same order; deleted jobs are left out.

    `final_metrics` and `best_metrics` are shortened as in lists (`first_names`).
    """
    columns = job_columns(Job, training_jobs, MOST_LISTED_NAMES)
    rows = connection.execute(select(*columns).where(_is_one_of(job_ids))).mappings()
    found = {row["id"]: Job(**row) for row in rows}
    return [found[job_id] for job_id in job_ids if job_id in found]


def find_page(connection: Connection, query: JobQuery, limit: int) -> list[Job]:
    """Return the next matching jobs after `query.after`, at most `limit`, with shortened metrics (`read_jobs`)."""
    return read_jobs(connection, [place.job_id for place in find_places(connection, query, limit)])


def find_jobs(connection: Connection, limit: int, status: str | None = None) -> list[Job]:
    """Return at most `limit` jobs that are not archived, newest first; with `status`, only jobs of this status."""
    return find_page(connection, JobQuery(statuses=() if status is None else (status,)), limit)


def read_columns(
    connection: Connection, job_ids: Sequence[int], fields: Mapping[str, Field], now: datetime
) -> dict[int, dict[str, Any]]:
    """Return job number -> name -> value of the field of that name, for each job in `job_ids` that exists.

    Texts are shortened to MAX_VALUE_CHARS characters; NaN and infinities are replaced by their names. The duration
    of a running job ends at `now`. Without `fields` the result is empty.
    """
    if not fields or not job_ids:
        return {}
    values = [_shown_value(field, now) for field in fields.values()]
    rows = connection.execute(select(_jobs.id, *values).where(_is_one_of(job_ids)))
    return {job: dict(zip(fields, map(shown_value, found), strict=True)) for job, *found in rows}


def _is_one_of(job_ids: Sequence[int]) -> Condition:
    # One parameter: a statement has at most 65,535.
    return _jobs.id == any_(literal(list(job_ids), ARRAY(BigInteger)))


def _shown_value(field: Field, now: datetime) -> ColumnElement[Any]:
    """Return an SQL expression for a field's value; a long value becomes a text of its first characters."""
    value = value_of(field, now)
    if field.type == "text":
        return func.left(value, MAX_VALUE_CHARS)
    if field.type != "free":
        return value
    whole = json_of(field)
    is_short = func.length(cast(whole, Text)) <= MAX_VALUE_CHARS
    return case((is_short, whole), else_=func.to_jsonb(func.left(value, MAX_VALUE_CHARS)))


def _condition(query: JobQuery) -> Condition:
    conditions = [true() if query.where is None else sql_condition(query.where, query.now)]
    if query.statuses:
        conditions.append(_jobs.status.in_(query.statuses))
    if query.name is not None:
        conditions.append(shown_name.icontains(query.name, autoescape=True))
    if query.search is not None and query.search.strip():
        conditions.append(_search(query.search.strip()))
    if not query.with_archived and Field("", "archived") not in fields_in(query.where):
        conditions.append(_jobs.archived_at.is_(None))
    return and_(*conditions)


def _search(text: str) -> Condition:
    tag = func.jsonb_each_text(func.coalesce(cast(shown_tags, JSONB), cast(literal("{}", Text), JSONB)))
    tags = tag.table_valued("key", "value", name="tag")
    has_tag = or_(*(column.icontains(text, autoescape=True) for column in (tags.c.key, tags.c.value)))
    return or_(
        cast(_jobs.id, Text).startswith(text, autoescape=True),
        is_end_of_made_id(text),
        shown_name.icontains(text, autoescape=True),
        select(literal(1)).select_from(tags).where(has_tag).correlate(training_jobs).exists(),
    )


def _sort_keys(query: JobQuery) -> tuple[list[ColumnElement[Any]], bool]:
    """Return the SQL expressions by which jobs are sorted, and whether the order is descending.

    In `params` and `tags`, numbers come before texts. The case of texts is ignored.
    """
    if query.sort is None:
        return [], False
    field, is_descending = query.sort
    value = value_of(field, query.now)
    match field.type:
        case "free":
            return [as_number(value), func.lower(value)], is_descending
        case "text":
            return [func.lower(value)], is_descending
        case "number" if field.space:
            return [without_nan(value)], is_descending
    return [value], is_descending


def _after(columns: Sequence[ColumnElement[Any]], place: JobPlace, *, is_descending: bool) -> Condition:
    """Return the condition that a job comes after the position `place`, in an order where NULL comes last.

    `columns` are the creation time, the number and the sort keys of a job.
    """
    created_at, job_id, *keys = columns
    later: list[Condition] = []
    same: list[Condition] = []
    for key, given in zip(keys, place.keys, strict=True):
        known = literal(given) if isinstance(given, bool) else given  # SQLAlchemy compares no `True` with `<`
        if known is not None:
            beyond = key < known if is_descending else key > known
            later.append(and_(*same, or_(beyond, key.is_(None))))
        same.append(key.is_(None) if known is None else key == known)
    older = tuple_(created_at, job_id) < tuple_(place.created_at, place.job_id)
    return or_(*later, and_(*same, older)) if keys else older
