"""The transport over HTTPS: each POST request carries messages, and the response carries acknowledgements."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import zstandard

from trainwire.ingest.sending.heartbeat import SourceHeartbeat
from trainwire.ingest.sending.transports.http_client import HttpClient, Response
from trainwire.ingest.sending.transports.transport import Answer, Claim, ack_reports, foreign_claim
from trainwire.ingest.sending.unacked import EncodedMessage
from trainwire.ingest.servers.outage import Refused, Unavailable
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.gateway_urls import base_of
from trainwire.schemas.keys import Kind
from trainwire.schemas.tracing import TRACEPARENT
from trainwire.schemas.wire.exchange import (
    CONTENT_TYPE,
    MESSAGES_PATH,
    ExchangeAnswer,
    decode_answer,
    encode_exchange,
)
from trainwire.schemas.wire.heartbeats import read_claim
from trainwire.schemas.wire.stop_requests import read_stop

logger = logging.getLogger("trainwire.ingest")

REQUEST_BYTES: Final = 1024 * 1024
"""Approximate size of the messages in one request, before compression; nginx by default accepts 1 MiB after it."""
LEAST_REQUEST_BYTES: Final = 64 * 1024
"""Lower limit of the request size, which is halved after each failure, for slow or unreliable networks.

Only the HTTP status 413 makes it smaller.
"""
MAX_DETAIL_CHARS: Final = 400
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_warned_of: Final[set[str]] = set()
_decode_problem: Final = msgspec.json.Decoder(dict[str, Any]).decode


class GatewayConnection:
    """The `Transport` of one source to the gateway.

    Raises `Refused` for a rejected token, and `Unavailable` for other failures.
    """

    least_interval_s = 0.1
    """Shortest interval between exchanges in seconds: a request costs more than a Redis command."""

    def __init__(
        self, url: str, token: str | None, job_id: int, source: str, traceparent: str | None = None
    ) -> None:
        self._server = base_of(url)
        self._token = token
        self._job_id = job_id
        self._source = source
        self._trace_headers = {} if traceparent is None else {TRACEPARENT: traceparent}
        self._path = MESSAGES_PATH.format(job_id=job_id)
        self._http = HttpClient(url)
        self._request_bytes = self._most_bytes = REQUEST_BYTES
        if token is not None and is_readable_on_the_way(url) and self._server not in _warned_of:
            _warned_of.add(self._server)
            logger.warning("TRAINWIRE_TOKEN can be read on the way to %s: write https:// if it can", self._server)

    def exchange(
        self,
        batches: Mapping[Kind, Sequence[EncodedMessage]],
        kinds: Sequence[Kind],
        heartbeat: SourceHeartbeat | None = None,
    ) -> Answer:
        """Send a heartbeat and messages, at least one if there are any; return the acknowledgements of `kinds`."""
        fields: dict[str, Any] = {"acks": list(kinds)}
        if heartbeat is not None:
            fields["heartbeat"] = heartbeat.heartbeat(0)
            if heartbeat.may_claim:
                fields["claim"] = heartbeat.rank_claim()
        part, found = self._send_some(batches, fields)
        if heartbeat is not None:
            heartbeat.note_answer(found.claim, is_taken=found.is_alive)
        return Answer(
            found.hold,
            found.is_job_deleted,
            ack_reports(kinds, found.acks, is_job_deleted=found.is_job_deleted),
            {kind: [message.seq for message in batch[: found.taken.get(kind, 0)]] for kind, batch in part.items()},
            None if found.refusal is None else Unavailable(found.refusal),
            read_stop(found.stop),
            found.is_unknown_resume,
            behind_s=found.behind_ms / 1000 if batches or kinds else None,
        )

    def claim(self, source: SourceHeartbeat, *, by_force: bool = False) -> Claim | None:
        found = self._answer(self._post({"claim": source.rank_claim(), "by_force": by_force}))
        return foreign_claim(source, read_claim(found.claim), found.now_ms)

    def withdraw_heartbeat(self, source: SourceHeartbeat) -> None:
        found = self._answer(self._post({"claim": source.rank_claim(), "has_ended": True}))
        source.note_claim(found.claim)

    def close(self) -> None:
        self._http.close()

    def _send_some(
        self, batches: Mapping[Kind, Sequence[EncodedMessage]], fields: Mapping[str, Any]
    ) -> tuple[dict[Kind, list[EncodedMessage]], ExchangeAnswer]:
        """Send as many messages of `batches` as fit into one request, with `fields`; fewer after HTTP status 413.

        Return these messages and the response.
        """
        while True:
            part = shares(batches, self._request_bytes)
            count = sum(map(len, part.values()))
            size_bytes = sum(message.size_bytes for batch in part.values() for message in batch)
            entries = {kind: [message.entry for message in batch] for kind, batch in part.items()}
            try:
                response = self._post({**fields, "entries": entries})
            except Unavailable:
                self._request_bytes = max(min(size_bytes // 2, self._most_bytes), LEAST_REQUEST_BYTES)
                raise
            if response.status == 413 and count > 1:
                self._request_bytes = self._most_bytes = max(min(size_bytes, self._request_bytes) // 2, 1)
                continue
            found = self._answer(response)
            self._request_bytes = min(2 * self._request_bytes, self._most_bytes)
            return part, found

    def _post(self, fields: Mapping[str, Any]) -> Response:
        body = zstandard.compress(encode_exchange({"source": self._source, **fields}), 1)
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Content-Encoding": "zstd",
            "User-Agent": "trainwire",
            **self._trace_headers,
        }
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return self._http.post(self._path, body, headers)

    def _answer(self, response: Response) -> ExchangeAnswer:
        """Decode the response; raise `Refused` or `Unavailable` if it is an error or cannot be decoded."""
        if response.status == 200 and response.media_type == CONTENT_TYPE:
            try:
                return decode_answer(response.body)
            except DECODE_ERRORS as exc:
                raise Unavailable(f"its answer cannot be read ({exc})") from exc
        detail = _detail(response)
        match response.status:
            case 401 | 403:
                token = "" if self._token else " (TRAINWIRE_TOKEN is not set)"
                raise Refused(f"{self._server} refuses the messages of job {self._job_id}: {detail}{token}")
            case 400 if response.media_type == "text/html" and self._server.startswith("http://"):  # nginx
                raise Unavailable(f"{detail}: does this port expect https://?")
            case 404 | 405:
                raise Unavailable(f"{detail}: is TRAINWIRE_URL the address of a gateway of this version?")
            case 413:
                raise Unavailable(
                    f"a single message is too large for it ({detail}): raise GATEWAY_MAX_BODY_BYTES, and the "
                    "limit of the proxy in front of the gateway (nginx: client_max_body_size)"
                )
            case 200:
                raise Unavailable(
                    f"it answers with {response.media_type or 'an unknown type'}: is TRAINWIRE_URL the address of "
                    "the gateway, and does no login page stand before it?"
                )
        raise Unavailable(detail)


def is_readable_on_the_way(url: str) -> bool:
    """Return whether requests to `url` leave this machine without encryption."""
    parts = urlsplit(url)
    return parts.scheme.lower() == "http" and parts.hostname not in LOOPBACK


def shares(
    batches: Mapping[Kind, Sequence[EncodedMessage]], budget_bytes: int
) -> dict[Kind, list[EncodedMessage]]:
    """Select the messages of one request: the first of each kind, about `budget_bytes` in total, at least one.

    Unless the budget is small, there is at least one message of each kind. Kinds with few bytes to send are
    served first, so that a completion does not wait behind log lines.
    """
    sizes = {kind: sum(message.size_bytes for message in batch) for kind, batch in batches.items()}
    part: dict[Kind, list[EncodedMessage]] = {}
    left = budget_bytes
    for number, kind in enumerate(sorted(sizes, key=lambda kind: sizes[kind])):
        share = left // (len(sizes) - number)
        taken: list[EncodedMessage] = []
        for message in batches[kind]:
            if message.size_bytes > share and (taken or (part and budget_bytes < LEAST_REQUEST_BYTES)):
                break
            taken.append(message)
            share -= message.size_bytes
            left -= message.size_bytes
        if taken:
            part[kind] = taken
    return part


def _detail(response: Response) -> str:
    """Return the detail of a problem document (RFC 9457), or else the HTTP status, without control characters."""
    text = f"HTTP status {response.status}"
    if response.media_type == "application/problem+json":
        with suppress(*DECODE_ERRORS):
            text = str(_decode_problem(response.body).get("detail") or text)
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= MAX_DETAIL_CHARS else f"{shown[:MAX_DETAIL_CHARS]}…"
