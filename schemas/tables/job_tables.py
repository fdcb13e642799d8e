"""The tables of jobs: their newest state, their attempts, requests to stop them, and deleted jobs."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from trainwire.schemas.tables.shared_columns import at, count, created_at, key, metadata


def _settled_by_older(name: str) -> Column[bool]:
    """Return an obsolete column, replaced by `settled`.

    Workers still write it, for workers of older versions that run during an upgrade.
    """
    comment = "its sink has all of these rows, and the job is quiet"
    return Column(name, Boolean, nullable=False, server_default=text("false"), comment=comment)


training_jobs = Table(
    "training_jobs",
    metadata,
    key("id", BigInteger),
    Column("name", Text),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    created_at(),
    at("started_at"),
    at("completed_at"),
    at("last_seen_at"),
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
    count("last_log_seq"),
    count("last_metric_seq"),
    count("last_checkpoint_seq"),
    # The last `seq` that retention has removed.
    count("removed_log_seq"),
    count("removed_metric_seq"),
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
    key("job_id", BigInteger),
    key("attempt", Integer),
    Column("name", Text),
    Column("status", Text, nullable=False),
    at("started_at"),
    at("completed_at"),
    Column("exit_code", Integer),
    Column("error_message", Text),
    Column("params", JSONB),
    Column("tags", JSONB),
    Column("provenance", JSONB, comment="command, code and machine: docs/provenance.md"),
    Column("resume_step", BigInteger, comment="the step from which it goes on"),
    Column("mlflow_run_id", Text, comment="the run that the trainer itself logs to, where it said so"),
    Column("mirror_run_id", Text, comment="the run that workers made and log to"),
    count("changes"),
    Column("mirrored_changes", BigInteger, nullable=False, server_default=text("0"), comment="what MLflow has"),
    Column("mirror_notes", JSONB, comment="what was adapted to MLflow's rules"),
    Index("training_attempts_unmirrored_idx", "job_id", postgresql_where=text("changes > mirrored_changes")),
    comment="What each attempt of a job was and how it ended; training_jobs has the newest.",
)

stop_requests = Table(
    "stop_requests",
    metadata,
    key("job_id", BigInteger),
    key("attempt", Integer),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("requested_by", Text, nullable=False),
    Column("reason", Text),
    Column("published_at", DateTime(timezone=True), comment="when workers first wrote it to Redis for trainers"),
    at("closed_at"),
    Index("stop_requests_open_idx", "job_id", postgresql_where=text("closed_at IS NULL")),
    comment="Requests of users to stop an attempt: docs/stop.md.",
)

deleted_jobs = Table(
    "deleted_jobs",
    metadata,
    key("job_id", BigInteger),
    Column("name", Text),
    Column("attempt", Integer, nullable=False),
    at("job_created_at", required=True),
    Column("deleted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("deleted_by", Text, nullable=False),
    Column("reason", Text),
    Column("parts", JSONB, nullable=False, comment="what is deleted, kept or left of each store"),
    count("discarded_messages"),
    at("discarded_at"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    at("next_attempt_at"),
    Column("finished_at", DateTime(timezone=True), comment="null while workers have something to delete"),
    Index("deleted_jobs_unfinished_idx", "next_attempt_at", postgresql_where=text("finished_at IS NULL")),
    comment="Tombstones: messages of these jobs are acknowledged and not stored.",
)
