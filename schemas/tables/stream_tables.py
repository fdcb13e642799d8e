"""The tables of the transfer from streams to rows: cursors of streams, positions of sources, and dead letters."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from trainwire.schemas.tables.shared_columns import at, count, created_at, key, metadata

ingest_cursors = Table(
    "ingest_cursors",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("last_id", Text, nullable=False, server_default="0-0"),
    count("entries"),
    count("duplicates"),
    count("discarded"),
    count("rows_in"),
    count("bytes_in"),
    Column(
        "drain_counts",
        ARRAY(BigInteger),
        nullable=False,
        server_default=text("'{0,0,0,0,0,0,0,0}'"),
        comment="transactions by their time: workers/durations.py",
    ),
    Column("drain_seconds", Double, nullable=False, server_default=text("0")),
    at("moved_at"),
    comment="The row lock is the lease on the stream; last_id is the newest entry that is committed.",
)

source_positions = Table(
    "source_positions",
    metadata,
    key("job_id", BigInteger),
    Column("source", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("attempt", Integer, nullable=False),
    count("last_seq"),
    Column("missing", JSONB, nullable=False, server_default="[]", comment="[[first, last], ...] below last_seq"),
    Column("lost", JSONB, nullable=False, server_default="[]", comment="[[first, last, reason], ...]: gone"),
    count("dead_lettered"),
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
    created_at(),
    UniqueConstraint("stream", "entry_id", "raw_sha256", name="dead_letters_entry_key"),
    Index(None, "job_id"),
    comment="Entries that can never be stored, each with its raw bytes and the reason.",
)
