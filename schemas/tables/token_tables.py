"""The table of the tokens for the gateway."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from trainwire.schemas.tables.shared_columns import at, created_at, metadata

gateway_tokens = Table(
    "gateway_tokens",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("job_id", BigInteger, comment="the only job that a trainer may speak for"),
    Column("hash", LargeBinary, nullable=False, comment="SHA-256 of the token, which is kept nowhere"),
    created_at(),
    at("last_used_at"),
    at("expires_at"),
    at("revoked_at"),
    CheckConstraint("role IN ('viewer', 'trainer', 'admin')", name="gateway_tokens_role_check"),
    Column("job_names", Text, comment="a name, or the beginning of names with a *: a trainer's only jobs"),
    UniqueConstraint("hash", name="gateway_tokens_hash_key"),
    comment="Who may use the gateway, and for what.",
)
