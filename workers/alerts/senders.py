"""Sends an alert to one destination: the interface, and signed webhooks. `notifications` uses Apprise."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec
import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError, SSLError

from trainwire.schemas.backoff import retry_after_s
from trainwire.schemas.wire.messages import AlertLevel

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 10.0


class NotSent(Exception):  # noqa: N818 - a state
    """The destination did not confirm the alert. The text contains no part of its address, which is a secret.

    `retry_after_s` is the delay in seconds that the destination requested, or None.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class AlertMessage:
    """The content of an alert. `id` stays the same if the alert is sent again."""

    id: str
    rule: str
    destination: str
    level: AlertLevel
    title: str
    content: str
    occurred_at: datetime
    job_id: int | None = None
    job_name: str | None = None
    attempt: int | None = None


class AlertSender(Protocol):
    """Sends alerts to one destination."""

    def send(self, message: AlertMessage) -> None:
        """Send an alert. Raises `NotSent` unless the destination confirms it."""
        ...


class Webhook:
    """Sends alerts as signed JSON in POST requests, as in Standard Webhooks (https://www.standardwebhooks.com)."""

    def __init__(self, url: str, secret: bytes) -> None:
        self._url = url
        self._secret = secret

    def send(self, message: AlertMessage) -> None:
        """Post the alert. A response with any status from 200 to 299 confirms it. Otherwise, raise `NotSent`."""
        body = payload(message)
        sent_at = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "trainwire",
            "webhook-id": message.id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": signature(self._secret, message.id, sent_at, body),
        }
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=ANSWER_TIMEOUT_S)
        try:
            with urllib3.PoolManager(timeout=timeout, retries=False) as pool:
                # The body of the answer is not read: it may be endless.
                answer = pool.request(
                    "POST", self._url, body=body, headers=headers, redirect=False, preload_content=False
                )
                answer.close()
        except (HTTPError, ValueError) as exc:
            raise NotSent(_trouble(exc)) from None  # the cause names the address
        if not 200 <= answer.status < 300:
            raise NotSent(f"the webhook answered {answer.status}", retry_after_s(answer.headers))


def payload(message: AlertMessage) -> bytes:
    """Return the JSON body of a webhook request."""
    job = None if message.job_id is None else {"id": message.job_id, "name": message.job_name}
    data: dict[str, Any] = {
        "rule": message.rule,
        "level": message.level,
        "title": message.title,
        "text": message.content,
        "job": job,
        "attempt": message.attempt,
    }
    document = {"type": "trainwire.alert", "timestamp": message.occurred_at.isoformat(), "data": data}
    return msgspec.json.encode(document)


def signature(secret: bytes, message_id: str, sent_at: int, body: bytes) -> str:
    """Return the header `webhook-signature`: the HMAC-SHA256 of id, time in seconds since 1970, and body."""
    signed = f"{message_id}.{sent_at}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()}"


def _trouble(exc: Exception) -> str:
    match exc:
        case ReadTimeoutError():
            return f"the webhook did not answer within {ANSWER_TIMEOUT_S:g} s"
        case NewConnectionError():
            return "the webhook refused the connection, or its host is unknown"
        case ConnectTimeoutError():  # in some versions of urllib3 the class above is one of these
            return f"the webhook accepted no connection within {CONNECT_TIMEOUT_S:g} s"
        case SSLError():
            return "the TLS certificate of the webhook is not trusted"
    return f"the connection to the webhook failed ({type(exc).__name__})"
