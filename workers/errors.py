"""Three words, three behaviours: invalid (dead-letter it), unavailable (try later), anything else (crash loudly).

*Invalid* is `trainwire.schemas.validation.InvalidMessage`.
"""

from __future__ import annotations


class Unavailable(Exception):  # noqa: N818 - the word the whole project uses
    """A store did not answer, or asked us to come back; the same work succeeds later."""


class WrongPooler(Unavailable):
    """A pooler gave a transaction a connection without its prepared statements: trying again would hide it."""


class Refused(Exception):  # noqa: N818 - the word the whole project uses
    """Postgres will never take these rows as they are: invalid, found out late."""


class MostlyInvalid(Exception):  # noqa: N818 - a state of the stream, said to operators as it stands
    """Nearly all entries of a stream are invalid: a bad deploy, not bad data, so the drain stops."""


class DrainsEnd(MostlyInvalid):
    """Entries end their drains, and no other entry shows yet whether that is their fault."""
