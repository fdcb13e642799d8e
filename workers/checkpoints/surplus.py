"""Selects checkpoints to delete: surplus ones of finished jobs, and superseded uploads of all jobs.

A message can contain any URI. So only files below `{prefix}/{job_id}/` in our own bucket are ever deleted, only
for rows of that job, and only uploads of the SDK if the job is running.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import Connection, CursorResult, text

from trainwire.schemas.checkpoint_keys import ARTIFACT, NEWEST_KINDS, SCHEME, UPLOAD_PATTERN, S3Uri
from trainwire.schemas.tables import INDEXED_CHARS
from trainwire.workers.settings import Settings

RUN_FILES: Final = 200
"""Maximum number of checkpoints that one run deletes, or lists in a dry run."""
PAGE_FILES: Final = 500
HIGHEST_CHAR: Final = "\U0010ffff"
SUPERSEDED_AFTER_S: Final = 600
"""Seconds for which an upload is kept after the one that replaces it was verified, so that downloads can end."""

Rule: TypeAlias = Literal["surplus", "superseded"]
"""Name of a rule that selects checkpoints to delete.

`surplus`: of a finished job, other than its best and last ones. `superseded`: a newer upload took the place of the
checkpoint.
"""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How many of the last checkpoints of a job are kept besides its best, and where files may be deleted."""

    last: int
    bucket: str
    prefix: str
    removes_superseded: bool = True
    """Whether superseded uploads are not counted among the last ones, because another rule deletes them."""

    @property
    def root(self) -> str:
        """The URI prefix below which files may be deleted; a job's folder is this prefix and the job's number."""
        prefix = self.prefix.strip("/")
        return f"{SCHEME}{self.bucket}/{prefix}/" if prefix else f"{SCHEME}{self.bucket}/"

    def folder_of(self, job_id: int) -> S3Uri:
        """Return the URI of the folder of a job."""
        return S3Uri.parse(f"{self.root}{job_id}/")


def retention_policy(settings: Settings) -> RetentionPolicy:
    """Return the retention policy from the settings. Raises `ValueError` if no bucket is set."""
    if not settings.trainwire_checkpoint_bucket:
        raise ValueError("TRAINWIRE_CHECKPOINT_BUCKET is not set: name the bucket that trainers upload to")
    return RetentionPolicy(
        settings.checkpoint_keep_last,
        settings.trainwire_checkpoint_bucket,
        settings.trainwire_checkpoint_prefix,
        settings.checkpoint_remove_superseded == "on",
    )


@dataclass(frozen=True, slots=True)
class Surplus:
    """A checkpoint that may be deleted, and the rule (`rule`) that selected it."""

    job_id: int
    seq: int
    kind: str
    uri: str
    size_bytes: int | None
    sha256: str | None
    rule: Rule


def surplus_files(connection: Connection, policy: RetentionPolicy, rule: Rule) -> Iterator[Surplus]:
    """Yield the checkpoints that `rule` selects and that are not in use, in the order of job and row number."""
    names = {
        "keep": policy.last,
        "root": policy.root,
        "upload": f"^{UPLOAD_PATTERN}[^/]+/?$",
        "removes_superseded": policy.removes_superseded,
        "grace_s": SUPERSEDED_AFTER_S,
        "limit": PAGE_FILES,
        "job_id": 0,
        "seq": 0,
    }
    while page := _files(connection.execute(_QUERIES[rule], names), rule):
        for surplus in page:
            if _is_free(connection, surplus):
                yield surplus
            names |= {"job_id": surplus.job_id, "seq": surplus.seq}


def begun_files(connection: Connection, policy: RetentionPolicy) -> list[Surplus]:
    """Return up to `RUN_FILES` checkpoints whose deletion was interrupted; some of their objects may be gone."""
    return _files(connection.execute(_BEGUN, {"root": policy.root, "limit": RUN_FILES}), "surplus")


def plan(connection: Connection, policy: RetentionPolicy, rule: Rule = "surplus") -> list[Surplus]:
    """Return up to `RUN_FILES` checkpoints that `rule` selects: those that the next run would delete."""
    return list(islice(surplus_files(connection, policy, rule), RUN_FILES))


def shared_addresses(connection: Connection, job_id: int, uris: list[str]) -> set[str]:
    """Return those `uris` that are in use besides the checkpoint rows of their own job.

    They occur in checkpoint rows of other jobs that are not deleted, or as the best or last path of any job (as
    the same URI, as a folder above it, or as a file in it), or in params or tags of a pending, running or stalled
    job.
    """
    return set(connection.execute(_SHARED, {"job_id": job_id, "uris": uris}).scalars())


def _files(found: CursorResult[Any], rule: Rule) -> list[Surplus]:
    return [Surplus(**row, rule=rule) for row in found.mappings()]


def _is_free(connection: Connection, surplus: Surplus) -> bool:
    """Return whether a checkpoint is not in use: by a running job, or as the best or last path of any job.

    For a superseded upload, references in rows of its own job are ignored.
    """
    folders = [surplus.uri[: end + 1] for end, char in enumerate(surplus.uri[:-1]) if char == "/"]
    names = {
        "job_id": surplus.job_id,
        "seq": surplus.seq,
        "uri": surplus.uri,
        "last_inside": surplus.uri + HIGHEST_CHAR if surplus.uri.endswith("/") else surplus.uri,
        "folders": folders,
        "folder_starts": [folder[:INDEXED_CHARS] for folder in folders],
        "is_superseded": surplus.rule == "superseded",
    }
    return not connection.execute(_IN_USE, names).scalar_one()


def _is_in(column: str) -> str:
    """Return the SQL condition that the URI in `column` equals `:uri` or, if `:uri` is a folder, lies in it.

    URIs in the folder sort between `:uri` and `:last_inside`.
    """
    first, last = (f"left({end}, {INDEXED_CHARS})" for end in (":uri", ":last_inside"))
    return (
        f'(left({column} COLLATE "C", {INDEXED_CHARS}) BETWEEN {first} AND {last} '
        f'AND {column} COLLATE "C" BETWEEN :uri AND :last_inside)'
    )


def _holds(column: str) -> str:
    """Return the SQL condition that the URI in `column` is a folder that contains the checkpoint.

    The parameter `:folders` lists all folders that contain the checkpoint.
    """
    return (
        f'(left({column} COLLATE "C", {INDEXED_CHARS}) = ANY(CAST(:folder_starts AS text[])) '
        f"AND {column} = ANY(CAST(:folders AS text[])))"
    )


_AT_WORK: Final = "status IN ('pending', 'running', 'stalled')"

# The slot is that of `trainwire.ingest.uploads.checkpoint.slot_of`, of one source. An upload is outdated if a
# verified one in its slot is newer both by its number and by the trainer's clock: if a message arrived late, or a
# clock was set back, both candidates for the newest are kept.
_RANKED: Final = f"""
    WITH present AS (
        SELECT *, lead(seq) OVER (PARTITION BY job_id, uri ORDER BY seq) AS overwritten_by,
            starts_with(uri, :root || job_id || '/')
                AND substr(uri, length(:root || job_id || '/') + 1) ~ :upload AS is_upload,
            CASE WHEN kind NOT IN {NEWEST_KINDS} THEN step END AS slot_step,
            substring(uri FROM '([.][^./]*|/)$') AS ending,
            verified_at < now() - make_interval(secs => :grace_s) AS is_settled,
            starts_with(kind, '{ARTIFACT}') AS is_artifact
        FROM training_checkpoints
        WHERE deleted_at IS NULL AND deletion_began_at IS NULL AND starts_with(uri, 's3://')
            AND job_id IN (SELECT id FROM training_jobs WHERE %s)
    ), slots AS (
        SELECT *, is_upload AND seq < max(seq) OVER slot AND logged_at < max(logged_at) OVER slot AS is_outdated,
            is_upload AND seq < max(seq) FILTER (WHERE is_settled) OVER slot
                AND logged_at < max(logged_at) FILTER (WHERE is_settled) OVER slot IS TRUE AS is_superseded
        FROM present WHERE overwritten_by IS NULL AND verified_at IS NOT NULL
        WINDOW slot AS (PARTITION BY job_id, attempt, source, kind, epoch, slot_step, ending, is_upload)
    ), ranked AS (
        SELECT *, row_number() OVER newest_first AS place,
            is_best AND row_number() OVER (PARTITION BY job_id, is_best ORDER BY attempt DESC, logged_at DESC,
            seq DESC) = 1 AS is_the_best
        FROM slots WINDOW newest_first AS (
            PARTITION BY job_id, is_artifact, is_outdated AND :removes_superseded
            ORDER BY attempt DESC, logged_at DESC, seq DESC
        )
    ), below AS (
        SELECT *, substr(uri, length(:root || job_id || '/') + 1) AS path
        FROM ranked WHERE starts_with(uri, :root || job_id || '/')
    )
    SELECT job_id, seq, kind, uri, size_bytes, sha256 FROM below JOIN training_jobs AS job ON job.id = job_id
    WHERE (job_id, seq) > (:job_id, :seq) AND NOT is_the_best
        AND uri IS DISTINCT FROM job.best_checkpoint_path AND uri IS DISTINCT FROM job.last_checkpoint_path
        -- Not with empty or dotted parts: a server or proxy that normalizes paths would delete another file.
        AND regexp_replace(path, '/$', '') !~ '(^|/)[.]{{0,2}}(/|$)'
    """  # noqa: S608 - our own words
# A job can be lost because its trainer cannot reach Redis; it needs its checkpoints when it resumes.
_ENDED: Final = f"NOT {_AT_WORK} AND coalesce(quiet_since < now() - interval '1 day', true)"
_PAGE: Final = "ORDER BY job_id, seq LIMIT :limit"
_QUERIES: Final = {
    "surplus": text(
        f"""
        {_RANKED % _ENDED} AND place > :keep AND NOT is_artifact
            AND NOT (is_outdated AND :removes_superseded)
        {_PAGE}
        """
    ),
    "superseded": text(
        f"""
        {_RANKED % "true"} AND is_superseded
            -- Ranks of a sharded checkpoint: it is kept while another rank's file of this step is not superseded.
            AND NOT EXISTS (
                SELECT FROM slots AS other WHERE other.job_id = below.job_id AND other.attempt = below.attempt
                    AND other.kind = below.kind AND other.step = below.step AND other.source <> below.source
                    AND other.epoch IS NOT DISTINCT FROM below.epoch AND NOT other.is_superseded
            )
        {_PAGE}
        """  # noqa: S608 - our own words
    ),
}
_BEGUN: Final = text(
    """
    SELECT job_id, seq, kind, uri, size_bytes, sha256 FROM training_checkpoints
    WHERE deletion_began_at IS NOT NULL AND deleted_at IS NULL AND starts_with(uri, :root || job_id || '/')
        AND EXISTS (SELECT FROM training_jobs WHERE id = job_id)
    ORDER BY job_id, seq LIMIT :limit
    """
)
_IN_USE: Final = text(
    f"""
    SELECT EXISTS (
        SELECT FROM training_jobs WHERE {_is_in("best_checkpoint_path")} OR {_is_in("last_checkpoint_path")}
            -- Only paths of the job itself: those of another may be, by mistake, the whole bucket.
            OR (id = :job_id AND ({_holds("best_checkpoint_path")} OR {_holds("last_checkpoint_path")}))
            OR ({_AT_WORK} AND (id = :job_id AND NOT :is_superseded OR strpos(CAST(params AS text), :uri) > 0
                OR strpos(CAST(tags AS text), :uri) > 0))
    ) OR EXISTS (
        SELECT FROM training_checkpoints AS other
        WHERE other.job_id = :job_id AND deleted_at IS NULL AND (
            {_is_in("other.uri")} AND (other.uri <> :uri OR other.seq > :seq)
            OR verified_at IS NOT NULL AND sha256 IS NOT NULL AND {_holds("other.uri")})
    ) OR EXISTS (
        SELECT FROM training_checkpoints AS other JOIN training_jobs AS job ON job.id = other.job_id
        WHERE job.{_AT_WORK} AND NOT (job.id = :job_id AND :is_superseded) AND {_is_in("other.uri")}
    )
    """  # noqa: S608 - our own words
)
_MINE: Final = "unnest(CAST(:uris AS text[])) AS mine(uri)"
_NESTED: Final = (
    "(right(mine.uri, 1) = '/' AND starts_with(other.uri, mine.uri) "
    "OR right(other.uri, 1) = '/' AND starts_with(mine.uri, other.uri))"
)
# The first part is a hash join; the other comparisons are quadratic, but for folders only.
_SHARED: Final = text(
    f"""
    WITH others AS (
        SELECT uri FROM training_checkpoints WHERE job_id <> :job_id AND deleted_at IS NULL
        UNION SELECT best_checkpoint_path FROM training_jobs WHERE best_checkpoint_path IS NOT NULL
        UNION SELECT last_checkpoint_path FROM training_jobs WHERE last_checkpoint_path IS NOT NULL
    )
    SELECT mine.uri FROM {_MINE} JOIN others AS other ON other.uri = mine.uri
    UNION SELECT mine.uri FROM {_MINE} JOIN others AS other ON {_NESTED}
    UNION SELECT mine.uri FROM {_MINE} JOIN training_jobs AS job ON status IN ('pending', 'running', 'stalled')
        AND (strpos(CAST(params AS text), mine.uri) > 0 OR strpos(CAST(tags AS text), mine.uri) > 0)
    """  # noqa: S608 - our own words
)
