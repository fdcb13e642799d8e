"""The Postgres tables. They have no foreign keys: checking one per row would cost more than the row's COPY."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import TypeEngine

from trainwire.schemas import lifted_metrics

metadata: Final = MetaData(
    naming_convention={"pk": "%(table_name)s_pkey", "ix": "%(table_name)s_%(column_0_N_name)s_idx"}
)


def _at(name: str, *, required: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not required)


def _created_at() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


def _settled_by_older(name: str) -> Column[bool]:
    """Return an obsolete column, replaced by `settled`.

    Workers still write it, for workers of older versions that run during an upgrade.
    """
    comment = "its sink has all of these rows, and the job is quiet"
    return Column(name, Boolean, nullable=False, server_default=text("false"), comment=comment)


def _key(name: str, kind: type[TypeEngine[Any]], comment: str | None = None) -> Column[Any]:
    """Return a column of the primary key whose values Postgres does not generate."""
    return Column(name, kind, primary_key=True, autoincrement=False, comment=comment)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


training_jobs = Table(
    "training_jobs",
    metadata,
    _key("id", BigInteger),
    Column("name", Text),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    _created_at(),
    _at("started_at"),
    _at("completed_at"),
    _at("last_seen_at"),
    Column("current_epoch", BigInteger),
    Column("total_epochs", BigInteger),
    Column("progress_percent", Double),
    Column("final_accuracy", Double),
    Column("final_metrics", JSONB),
    Column("best_metrics", JSONB),
    Column("best_epoch", BigInteger),
    Column("best_checkpoint_path", Text),
    Column("last_checkpoint_path", Text),
    Column("best_checkpoint_at", DateTime(timezone=True), comment="when the trainer saved it: never moves back"),
    Column("last_checkpoint_at", DateTime(timezone=True), comment="when the trainer saved it: never moves back"),
    Column("mlflow_run_id", Text),
    Column("exit_code", Integer),
    Column("error_message", Text),
    Column("quiet_since", DateTime(timezone=True), comment="when a stalled or lost job was last heard of"),
    Column("status_reason", Text, comment="why it is stalled or lost"),
    Column("watched_attempt", Integer, comment="the attempt of which heartbeats were heard"),
    Column("resume_step", BigInteger, comment="the step from which its attempt goes on"),
    Column("parent_id", BigInteger, comment="the job that it is a fork of"),
    Column("fork_step", BigInteger, comment="the last step that it has of its parent"),
    Column("params", JSONB),
    Column("tags", JSONB),
    # Written by people, and never by messages of trainers.
    Column("given_name", Text, comment="name given by a person; replaces `name`"),
    Column(
        "given_tags", JSONB, comment="tags given by a person, merged with `tags`; a null removes the trainer's tag"
    ),
    Column("note", Text),
    Column("archived_at", DateTime(timezone=True), comment="hidden in lists since then"),
    # The last `seq` of a row of this job, per kind: also the number of rows ever written.
    _count("last_log_seq"),
    _count("last_metric_seq"),
    _count("last_checkpoint_seq"),
    # The last `seq` that retention has removed.
    _count("removed_log_seq"),
    _count("removed_metric_seq"),
    Column("files_swept_at", DateTime(timezone=True), comment="when unrecorded uploads were looked for"),
    # Text, not an array: `settled = ANY(...)` can look up several values in the index.
    Column(
        "settled",
        Text,
        nullable=False,
        server_default="",
        comment="sorted names of the sinks that have all rows of the job, with commas; '' after each drain",
    ),
    Index(None, "settled", "id"),
    _settled_by_older("logs_settled"),
    _settled_by_older("metrics_settled"),
    Index("training_jobs_logs_unsettled_idx", "id", postgresql_where=text("NOT logs_settled")),
    Index("training_jobs_metrics_unsettled_idx", "id", postgresql_where=text("NOT metrics_settled")),
    Index(
        "training_jobs_watched_idx",
        "id",
        postgresql_where=text("status IN ('running', 'stalled') AND watched_attempt = attempt"),
    ),
    Index("training_jobs_newest_idx", "created_at", "id"),
    Index("training_jobs_parent_idx", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
    comment="One row per training job; created by its first message.",
)

training_attempts = Table(
    "training_attempts",
    metadata,
    _key("job_id", BigInteger),
    _key("attempt", Integer),
    Column("name", Text),
    Column("status", Text, nullable=False),
    _at("started_at"),
    _at("completed_at"),
    Column("exit_code", Integer),
    Column("error_message", Text),
    Column("params", JSONB),
    Column("tags", JSONB),
    Column("provenance", JSONB, comment="command, code and machine: docs/provenance.md"),
    Column("resume_step", BigInteger, comment="the step from which it goes on"),
    Column("mlflow_run_id", Text, comment="the run that the trainer itself logs to, where it said so"),
    Column("mirror_run_id", Text, comment="the run that workers made and log to"),
    _count("changes"),
    Column("mirrored_changes", BigInteger, nullable=False, server_default=text("0"), comment="what MLflow has"),
    Column("mirror_notes", JSONB, comment="what was adapted to MLflow's rules"),
    Index("training_attempts_unmirrored_idx", "job_id", postgresql_where=text("changes > mirrored_changes")),
    comment="What each attempt of a job was and how it ended; training_jobs has the newest.",
)

stop_requests = Table(
    "stop_requests",
    metadata,
    _key("job_id", BigInteger),
    _key("attempt", Integer),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("requested_by", Text, nullable=False),
    Column("reason", Text),
    Column("published_at", DateTime(timezone=True), comment="when workers first wrote it to Redis for trainers"),
    _at("closed_at"),
    Index("stop_requests_open_idx", "job_id", postgresql_where=text("closed_at IS NULL")),
    comment="Requests of users to stop an attempt: docs/stop.md.",
)

training_logs = Table(
    "training_logs",
    metadata,
    _key("job_id", BigInteger),
    _key("seq", BigInteger),
    _at("logged_at", required=True),
    _created_at(),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer),
    Column("logged_ns", SmallInteger, nullable=False, comment="nanoseconds below logged_at's microsecond"),
    Column("source", Text, nullable=False),
    Column("log_type", Text, nullable=False),
    Column("level", Text),
    Column("content", Text, nullable=False),
)

LIFTED: Final = lifted_metrics.LIFTED
LIFTED_SQL: Final = ", ".join(LIFTED)

training_metrics = Table(
    "training_metrics",
    metadata,
    _key("job_id", BigInteger),
    _key("seq", BigInteger),
    _at("logged_at", required=True),
    _created_at(),
    Column("epoch", BigInteger),
    Column("step", BigInteger),
    *(Column(name, Double) for name in LIFTED),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer),
    Column("source", Text, nullable=False),
    Column("checkpoint_path", Text),
    Column("extra_metrics", JSONB, comment="NaN and infinities are the strings of docs/wire-format.md"),
)

INDEXED_CHARS: Final = 500
"""Number of leading characters of a long text that are indexed; an index entry is limited to about 2,700 bytes."""

ROLLUPS_CURSOR: Final = "rollups"
"""Value of `delivery_cursors.sink` for the cursor up to which a job's points are stored in metric_blocks."""

# Derived from training_metrics by workers/rollups, and rebuilt from it: see stores/rows/metric_blocks.py.
metric_series = Table(
    "metric_series",
    metadata,
    _key("job_id", BigInteger),
    _key("series", Integer, comment="1, 2, 3 ... per job"),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer),
    Column("name", Text, nullable=False),
    # Without a value that is a number, `low` is above `high`.
    Column("low", Double, nullable=False, server_default=text("'Infinity'"), comment="the lowest value in blocks"),
    Column(
        "high", Double, nullable=False, server_default=text("'-Infinity'"), comment="the highest value in blocks"
    ),
    Index("metric_series_name_idx", "job_id", text(f'"left"(name COLLATE "C", {INDEXED_CHARS})')),
    comment="The metrics of each attempt and rank: one series each.",
)

metric_blocks = Table(
    "metric_blocks",
    metadata,
    _key("job_id", BigInteger),
    _key("series", Integer),
    _key("level", SmallInteger, comment="0: every point; -1: newest"),
    _key("number", Integer),
    Column("last_seq", BigInteger, nullable=False),
    Column("bounds", LargeBinary, nullable=False),
    Column("points", LargeBinary, nullable=False),
    comment="Points of metrics by series, and their extremes at several resolutions, for charts.",
)

training_checkpoints = Table(
    "training_checkpoints",
    metadata,
    _key("job_id", BigInteger),
    _key("seq", BigInteger),
    _at("logged_at", required=True),
    _created_at(),
    Column("epoch", BigInteger),
    Column("step", BigInteger),
    Column("size_bytes", BigInteger),
    Column("attempt", Integer, nullable=False),
    Column("is_best", Boolean, nullable=False),
    Column("source", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("uri", Text, nullable=False),
    Column("sha256", Text),
    Column("store_checksum", Text, comment="what the object store says of the object: S3's ChecksumSHA256"),
    Column("upload_error", Text, comment="why uri is still a path on the trainer's machine"),
    Column("metrics", JSONB),
    _at("verified_at"),
    Column("verify_error", Text, comment="what the last look at the object found wrong"),
    Column("verify_attempts", Integer, nullable=False, server_default=text("0")),
    _at("verify_after"),
    Column("deletion_began_at", DateTime(timezone=True), comment="from then on the object may be incomplete"),
    Column("deleted_at", DateTime(timezone=True), comment="when retention removed the object"),
    # Retention looks for a URI in all jobs. A URI may be longer than an index entry: its beginning is enough.
    # By the order of "C" one range has everything that lies in a folder.
    Index("training_checkpoints_uri_idx", text(f'"left"(uri COLLATE "C", {INDEXED_CHARS})')),
    # The query for files to verify repeats this predicate: workers/checkpoints/verification_rows.py
    Index(
        "training_checkpoints_unverified_idx",
        "verify_after",
        postgresql_where=text(
            "verified_at IS NULL AND deleted_at IS NULL AND starts_with(uri, 's3://') "
            "AND (verify_attempts = 0 OR verify_after IS NOT NULL)"
        ),
    ),
)

ingest_cursors = Table(
    "ingest_cursors",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("last_id", Text, nullable=False, server_default="0-0"),
    _count("entries"),
    _count("duplicates"),
    _count("discarded"),
    _count("rows_in"),
    _count("bytes_in"),
    Column(
        "drain_counts",
        ARRAY(BigInteger),
        nullable=False,
        server_default=text("'{0,0,0,0,0,0,0,0}'"),
        comment="transactions by their time: workers/durations.py",
    ),
    Column("drain_seconds", Double, nullable=False, server_default=text("0")),
    _at("moved_at"),
    comment="The row lock is the lease on the stream; last_id is the newest entry that is committed.",
)

source_positions = Table(
    "source_positions",
    metadata,
    _key("job_id", BigInteger),
    Column("source", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("attempt", Integer, nullable=False),
    _count("last_seq"),
    Column("missing", JSONB, nullable=False, server_default="[]", comment="[[first, last], ...] below last_seq"),
    Column("lost", JSONB, nullable=False, server_default="[]", comment="[[first, last, reason], ...]: gone"),
    _count("dead_lettered"),
    Column("produced", BigInteger, comment="last seq the source says it made; null until its completion"),
    Column("dropped", BigInteger, comment="messages the source says it gave up; null until its completion"),
    Column("rank", Integer),
    Column("world_size", Integer, comment="number of ranks of the attempt, as the source stated it"),
    Column("is_launcher", Boolean, nullable=False, server_default=text("false")),
    Column("began_at", DateTime(timezone=True), comment="start of the process that created the run, by its clock"),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column(
        "ended_at",
        DateTime(timezone=True),
        comment="time of the completion that the source itself sent, by its clock",
    ),
    Column(
        "is_behind",
        Boolean,
        Computed("missing <> '[]' OR coalesce(produced > last_seq, false)", persisted=True),
        comment="whether messages are missing",
    ),
    # For the exporter: without them it would read all sources of all jobs. With `last_seq` in a predicate, each
    # update of a position would add entries to all indexes (migration 0020).
    Index("source_positions_behind_idx", "kind", postgresql_where=text("is_behind")),
    Index("source_positions_lost_idx", "kind", postgresql_where=text("lost <> '[]'")),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("stream", Text, nullable=False),
    Column("entry_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("job_id", BigInteger),
    Column("source", Text),
    Column("seq", BigInteger),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False, comment="msgpack map of the entry's flat fields, as they came"),
    Column("raw_sha256", LargeBinary, nullable=False),
    _created_at(),
    UniqueConstraint("stream", "entry_id", "raw_sha256", name="dead_letters_entry_key"),
    Index(None, "job_id"),
    comment="Entries that can never be stored, each with its raw bytes and the reason.",
)

delivery_cursors = Table(
    "delivery_cursors",
    metadata,
    Column("sink", Text, primary_key=True),
    _key("job_id", BigInteger),
    _count("confirmed_seq"),
    Column("state", JSONB, nullable=False, server_default="{}", comment="what the sink itself needs to go on"),
    # Unused since `state` exists.
    Column("newest_ns", JSONB, nullable=False, server_default="{}", comment="log_type -> newest time sent"),
    _count("dead_lettered"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    _at("moved_at"),
    Column(
        "next_attempt_at",
        DateTime(timezone=True),
        comment="of a job that may fail alone: until then the others go before it",
    ),
    comment="How far a sink has confirmed a job's rows. The rows themselves are the only copy of the payload.",
)

sink_states = Table(
    "sink_states",
    metadata,
    Column("sink", Text, primary_key=True),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    _at("down_since"),
    _at("next_probe_at"),
    Column("last_error", Text),
    comment="Whether a sink answers: while it does not, one probe at a time is sent, however many jobs wait.",
)

delivery_times = Table(
    "delivery_times",
    metadata,
    Column("sink", Text, primary_key=True),
    Column("counts", ARRAY(BigInteger), nullable=False, comment="work orders by their time: workers/durations.py"),
    Column("seconds", Double, nullable=False),
    comment="How long work orders to deliver took.",
)

alert_occurrences = Table(
    "alert_occurrences",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("kind", Text, nullable=False, comment="status, alert or dead_letters"),
    Column("value", Text, nullable=False, comment="the new status, the level of the alert, or the reason"),
    Column("job_id", BigInteger),
    Column("attempt", Integer),
    Column("title", Text),
    Column("content", Text),
    _at("occurred_at", required=True),
    _created_at(),
    Index(None, "job_id"),
    comment="Changes that alert rules have not seen yet; written with the change, removed with the alert.",
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("rule", Text, nullable=False),
    Column("destination", Text, nullable=False),
    Column("occurrence", Text, nullable=False, comment="what the rule has found, once for each destination"),
    Column("state", Text, nullable=False, comment="waiting, sending, sent, failed, uncertain or suppressed"),
    Column("level", Text, nullable=False),
    Column("job_id", BigInteger),
    Column("attempt", Integer),
    Column("title", Text, nullable=False),
    Column("content", Text, nullable=False),
    _at("occurred_at", required=True),
    _created_at(),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    Column("ended_at", DateTime(timezone=True), comment="when it was sent or given up"),
    UniqueConstraint("rule", "destination", "occurrence", name="alerts_occurrence_key"),
    Index(None, "job_id"),
    Index("alerts_unsent_idx", "destination", "id", postgresql_where=text("state IN ('waiting', 'sending')")),
    Index("alerts_newest_idx", "created_at"),
    comment="Messages for people, one per rule, occurrence and destination: also the log of what was sent.",
)

deleted_jobs = Table(
    "deleted_jobs",
    metadata,
    _key("job_id", BigInteger),
    Column("name", Text),
    Column("attempt", Integer, nullable=False),
    _at("job_created_at", required=True),
    Column("deleted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("deleted_by", Text, nullable=False),
    Column("reason", Text),
    Column("parts", JSONB, nullable=False, comment="what is deleted, kept or left of each store"),
    _count("discarded_messages"),
    _at("discarded_at"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    _at("next_attempt_at"),
    Column("finished_at", DateTime(timezone=True), comment="null while workers have something to delete"),
    Index("deleted_jobs_unfinished_idx", "next_attempt_at", postgresql_where=text("finished_at IS NULL")),
    comment="Tombstones: messages of these jobs are acknowledged and not stored.",
)

gateway_tokens = Table(
    "gateway_tokens",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("job_id", BigInteger, comment="the only job that a trainer may speak for"),
    Column("hash", LargeBinary, nullable=False, comment="SHA-256 of the token, which is kept nowhere"),
    _created_at(),
    _at("last_used_at"),
    _at("expires_at"),
    _at("revoked_at"),
    CheckConstraint("role IN ('viewer', 'trainer', 'admin')", name="gateway_tokens_role_check"),
    Column("job_names", Text, comment="a name, or the beginning of names with a *: a trainer's only jobs"),
    UniqueConstraint("hash", name="gateway_tokens_hash_key"),
    comment="Who may use the gateway, and for what.",
)
