"""The exceptions of the workers.

`trainwire.schemas.wire.validation.InvalidMessage` and `Refused` lead to a dead letter, `Unavailable` to a retry.
Any other exception is a bug, and is logged with its traceback.
"""

from __future__ import annotations


class Unavailable(Exception):  # noqa: N818 - the term of the whole project
    """The work cannot be done now, usually because a store does not answer or requests a retry later."""


class RowsLocked(Unavailable):
    """Another session of Postgres has locked rows for long, such as that of a job in an open transaction."""


class WrongPooler(Unavailable):
    """A connection pooler in transaction mode lost prepared statements.

    Not retried at once, because that would hide the misconfiguration.
    """


class Refused(Exception):  # noqa: N818 - the term of the whole project
    """Postgres rejected rows because of their values; a retry would fail too."""


class MostlyInvalid(Exception):  # noqa: N818 - a state of the stream
    """Nearly all entries of a batch are invalid, probably because of a bad deploy: the drain stops."""


class DrainsEnd(MostlyInvalid):
    """All entries of a transaction crash or kill their drains: the cause may lie outside of the entries."""
