"""Tools that read a job's metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

from pydantic import Field

from trainwire.cli.mcp_tools.answers import Answer, JobReference, one_or_more, shown_time
from trainwire.cli.mcp_tools.log_tools import Seq
from trainwire.client.client import Client
from trainwire.client.errors import ClientError
from trainwire.client.job import Job
from trainwire.client.metrics import Series
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.validation import MAX_ATTEMPT

POINT: Final = ("seq", "step", "epoch", "time", "value")
PIECE: Final = ("first_seq", "first_step", "last_step", "points", "first", "min", "max", "last", "not_finite")
MOST_NAMES: Final = 20


def metric_names(
    client: Client,
    job: JobReference,
    pattern: Annotated[str, Field(description="Only names that match, with * and ?, such as val/*.")] = "*",
    after: Annotated[str, Field(description="Only names after this one, in their order.")] = "",
    limit: Annotated[int, Field(ge=1, le=10_000, description="Most names.")] = 500,
) -> dict[str, Any]:
    """Return the names of a job's metrics, sorted."""
    found = client.job(job)
    known = found.metric_names()
    names = [name for name in known.names if fnmatchcase(name, pattern) and name > after]
    answer = Answer(found)
    answer.add(matching=len(names), names=names[:limit])
    if len(names) > limit:
        answer.leave_out(f"{len(names) - limit:,} names: repeat with after={names[limit - 1]!r}")
    if not known.is_complete:
        answer.leave_out("the names of the oldest rows, which are still being read: repeat the request")
    return answer.document()


def metric_history(
    client: Client,
    *,
    job: JobReference,
    names: Annotated[
        list[str], one_or_more, Field(min_length=1, max_length=MOST_NAMES, description="Names of metrics.")
    ],
    attempt: Annotated[int | None, Field(ge=0, le=MAX_ATTEMPT, description="Only this attempt.")] = None,
    rank: Annotated[int | None, Field(ge=0, le=MAX_ATTEMPT, description="Only this rank.")] = None,
    after_seq: Annotated[Seq, Field(description="Only points after this `seq`; summaries are of all.")] = 0,
    limit: Annotated[int, Field(ge=1, le=100_000, description="Most points of each metric.")] = 200,
    pieces: Annotated[
        int | None,
        Field(
            ge=1, le=1000, description="Instead of points: this many pieces with first, min, max and last value."
        ),
    ] = None,
) -> dict[str, Any]:
    """Return the history of metrics: a summary of all points of each, and its points in order, or pieces of them.

    The points are those that the training logged, never sampled. For a long metric, pieces=50 shows the whole
    curve with its extremes.
    """
    found = client.job(job)
    metrics = found.metrics(names)
    answer = Answer(found)
    columns = (*POINT, *(place for place in ("attempt", "rank") if _has_several(metrics.values(), place)))
    answer.add(columns=columns if pieces is None else PIECE)
    histories = []
    for name in dict.fromkeys(names):
        series = metrics.get(name)
        if series is None:
            raise ClientError(unknown_metric(found, name))
        wanted = [
            at
            for at in range(len(series.seq))
            if (attempt is None or series.attempt[at] == attempt) and (rank is None or series.rank[at] == rank)
        ]
        shown: dict[str, Any] = {"name": name, "summary": summary(series, wanted)}
        rest = [at for at in wanted if series.seq[at] > after_seq]
        if pieces is not None:
            shown["pieces"] = _pieces(series, rest, pieces)
        else:
            shown["points"] = [_point(series, at, columns) for at in rest[:limit]]
            if len(rest) > limit:
                left = f"{len(rest) - limit:,} points of {name}"
                answer.leave_out(f"{left}: repeat with after_seq={series.seq[rest[limit - 1]]}, or pieces=50")
        histories.append(shown)
    answer.add(metrics=histories)
    return answer.document()


def summary(series: Series, wanted: Sequence[int]) -> dict[str, Any]:
    """Summarize the points of a metric at the indexes `wanted`.

    The summary has the number of points and of those that are NaN or infinite, the first and last point, the
    points with the minimum and maximum, and the first point that is not finite. `attempts` and `ranks` are listed
    if there are several. Entries without a point are absent.
    """
    finite = [at for at in wanted if math.isfinite(series.value[at])]
    found: dict[str, Any] = {"points": len(wanted), "not_finite": len(wanted) - len(finite)}
    if wanted:
        found |= {"first": _named(series, wanted[0]), "last": _named(series, wanted[-1])}
    if finite:
        found["min"] = _named(series, min(finite, key=series.value.__getitem__))
        found["max"] = _named(series, max(finite, key=series.value.__getitem__))
    if len(finite) < len(wanted):
        first = next(at for at in wanted if not math.isfinite(series.value[at]))
        found["first_not_finite"] = _named(series, first)
    for name in ("attempt", "rank"):
        values = {getattr(series, name)[at] for at in wanted} - {None}
        if len(values) > 1:
            found[f"{name}s"] = sorted(values)
    return found


def unknown_metric(job: Job, name: str) -> str:
    """Return an error text for a metric that the job does not have; it suggests similar names."""
    known = job.metric_names().names
    similar = ", ".join(get_close_matches(name, known, n=5, cutoff=0.5)) or ", ".join(known[:10]) or "none"
    return f"job {job.id} has no metric {name!r}; it has {similar}: metric_names(job={job.id}) lists all"


def _has_several(found: Iterable[Series], place: str) -> bool:
    return any(len(set(getattr(series, place))) > 1 for series in found)


def _point(series: Series, at: int, columns: Sequence[str] = POINT) -> list[Any]:
    return [
        shown_time(to_datetime(series.ts[at])) if column == "time" else getattr(series, column)[at]
        for column in columns
    ]


def _named(series: Series, at: int) -> dict[str, Any]:
    named = dict(zip(POINT, _point(series, at), strict=True))
    return {name: value for name, value in named.items() if value is not None}


def _pieces(series: Series, wanted: Sequence[int], count: int) -> list[list[Any]]:
    """Divide the points at the indexes `wanted` into at most `count` consecutive pieces; return one row per piece.

    All pieces but the last are of one length. The rows have the columns `PIECE`.
    """
    size = max(1, math.ceil(len(wanted) / count))
    found = []
    for begin in range(0, len(wanted), size):
        piece = wanted[begin : begin + size]
        values = [series.value[at] for at in piece]
        finite = [value for value in values if math.isfinite(value)]
        extremes = (min(finite), max(finite)) if finite else (None, None)
        steps = series.step[piece[0]], series.step[piece[-1]]
        not_finite = len(values) - len(finite)
        found.append([series.seq[piece[0]], *steps, len(piece), values[0], *extremes, values[-1], not_finite])
    return found
