"""Encodes the bodies of one source as entries of a stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainwire.ingest.sending.salvage import item_count, salvaged
from trainwire.ingest.sending.size_limits import fitted
from trainwire.schemas.keys import Kind
from trainwire.schemas.messages import Body, Message
from trainwire.schemas.wire import Entry, encode_entry

if TYPE_CHECKING:
    from trainwire.ingest.origin import Origin

logger = logging.getLogger("trainwire.ingest")


class BodyEncoder:
    """Encodes bodies; shortens what exceeds the wire format's limits, and leaves out what has no form on the wire.

    Each shortened value, dropped line, point or field is counted by `count_dropped` and named in a warning.
    """

    def __init__(self, origin: Origin, count_dropped: Callable[[str, int], None]) -> None:
        self._origin = origin
        self._count_dropped = count_dropped
        self._shortened_kinds: set[Kind] = set()

    def encode(self, kind: Kind, seq: int, body: Body) -> Entry | None:
        """Return the entry of the body, or of the part that can be sent; None where there is no such part."""
        body = self._fitted(kind, body)
        entry = self._encoded(kind, seq, body)
        if entry is not None:
            return entry
        kept, dropped = salvaged(body)
        entry = None if kept is None else self._encoded(kind, seq, kept)
        if entry is None:
            dropped = item_count(body)
        if dropped:
            self._count_dropped(kind, dropped)
            logger.warning("job %s: %s of %s cannot be sent: dropped", self._origin.job_id, dropped, kind)
        return entry

    def _fitted(self, kind: Kind, body: Body) -> Body:
        """Return the body within the limits of the wire format; warn once for each kind of message."""
        try:
            body, cuts = fitted(body)
        except Exception:
            logger.debug("%s of job %s cannot be measured", kind, self._origin.job_id, exc_info=True)
            return body
        if cuts and kind not in self._shortened_kinds:
            self._shortened_kinds.add(kind)
            logger.warning(
                "job %s: %s too large: %s (docs/wire-format.md)", self._origin.job_id, kind, "; ".join(cuts[:10])
            )
        if cuts:
            self._count_dropped("values", len(cuts))
        return body

    def _encoded(self, kind: Kind, seq: int, body: Body) -> Entry | None:
        origin = self._origin
        try:
            return encode_entry(Message(kind, origin.job_id, origin.attempt, origin.source, seq, body))
        except MemoryError:
            raise  # cut again once there is some
        except Exception:
            # Whatever it is: the body is ours alone by now, and what follows it must be sent.
            logger.debug("%s of job %s cannot be encoded as they are", kind, origin.job_id, exc_info=True)
            return None
