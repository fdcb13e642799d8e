"""The tables with the rows of a job: log lines, points of metrics and checkpoints."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from trainwire.schemas import lifted_metrics
from trainwire.schemas.tables.shared_columns import at, created_at, key, metadata

training_logs = Table(
    "training_logs",
    metadata,
    key("job_id", BigInteger),
    key("seq", BigInteger),
    at("logged_at", required=True),
    created_at(),
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
    key("job_id", BigInteger),
    key("seq", BigInteger),
    at("logged_at", required=True),
    created_at(),
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
    key("job_id", BigInteger),
    key("series", Integer, comment="1, 2, 3 ... per job"),
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
    key("job_id", BigInteger),
    key("series", Integer),
    key("level", SmallInteger, comment="0: every point; -1: newest"),
    key("number", Integer),
    Column("last_seq", BigInteger, nullable=False),
    Column("bounds", LargeBinary, nullable=False),
    Column("points", LargeBinary, nullable=False),
    comment="Points of metrics by series, and their extremes at several resolutions, for charts.",
)

training_checkpoints = Table(
    "training_checkpoints",
    metadata,
    key("job_id", BigInteger),
    key("seq", BigInteger),
    at("logged_at", required=True),
    created_at(),
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
    at("verified_at"),
    Column("verify_error", Text, comment="what the last look at the object found wrong"),
    Column("verify_attempts", Integer, nullable=False, server_default=text("0")),
    at("verify_after"),
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
