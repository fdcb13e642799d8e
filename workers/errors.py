"""The exceptions of the workers.

`trainwire.schemas.validation.InvalidMessage` and `Refused` lead to a dead letter, `Unavailable` to a retry. Any
other exception is a bug and is logged with its traceback.
"""

from __future__ import annotations


class Unavailable(Exception):  # noqa: N818 - the term of the whole project
    """A store did not answer, or requested a retry later."""


class WrongPooler(Unavailable):
    """A pooler of transactions lost prepared statements. Not retried: a retry would hide the misconfiguration."""


class Refused(Exception):  # noqa: N818 - the term of the whole project
    """Postgres rejected these rows for their values; a retry would fail too."""


class MostlyInvalid(Exception):  # noqa: N818 - a state of the stream
    """Nearly all entries of a stream are invalid, which suggests a bad deploy: the drain stops."""


class DrainsEnd(MostlyInvalid):
    """Entries end their drains, and no other entry was stored: the cause may lie outside of the entries."""
