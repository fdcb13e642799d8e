"""The tables of deliveries to the sinks and of alerts to people."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from trainwire.schemas.tables.shared_columns import at, count, created_at, key, metadata

delivery_cursors = Table(
    "delivery_cursors",
    metadata,
    Column("sink", Text, primary_key=True),
    key("job_id", BigInteger),
    count("confirmed_seq"),
    Column("state", JSONB, nullable=False, server_default="{}", comment="what the sink itself needs to go on"),
    # Unused since `state` exists.
    Column("newest_ns", JSONB, nullable=False, server_default="{}", comment="log_type -> newest time sent"),
    count("dead_lettered"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    at("moved_at"),
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
    at("down_since"),
    at("next_probe_at"),
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
    at("occurred_at", required=True),
    created_at(),
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
    at("occurred_at", required=True),
    created_at(),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    Column("ended_at", DateTime(timezone=True), comment="when it was sent or given up"),
    UniqueConstraint("rule", "destination", "occurrence", name="alerts_occurrence_key"),
    Index(None, "job_id"),
    Index("alerts_unsent_idx", "destination", "id", postgresql_where=text("state IN ('waiting', 'sending')")),
    Index("alerts_newest_idx", "created_at"),
    comment="Messages for people, one per rule, occurrence and destination: also the log of what was sent.",
)
