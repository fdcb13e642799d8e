"""The format of work orders: encodes them, and checks those that a worker receives.

The check covers everything that kombu and Celery read before the task runs. So a valid order can neither end the
worker's main process, nor wait in its memory (`eta`), nor start other tasks (`chain`, callbacks).
"""

from __future__ import annotations

import base64
import os
import socket
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from trainwire.schemas import keys
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.keys import Kind
from trainwire.schemas.sinks import SINKS

MAX_ORDER_BYTES: Final = 4 * 1024 * 1024
MAX_SHARD: Final = 2**31 - 1
_YEARS: Final = range(2000, 2101)
"""Valid years of an expiry time: outside of them, arithmetic with time zones overflows."""

Name: TypeAlias = Annotated[str, Meta(max_length=1000)]


class WrongOrder(ValueError):  # noqa: N818 - part of a log line
    """A message is not a valid order for its queue; the text is the reason."""


class _Headers(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The headers of Celery's message protocol 2 that our processes send: no eta, retries or time limits."""

    task: Name
    id: Annotated[str, Meta(min_length=1, max_length=1000)]
    lang: Literal["py"] = "py"
    root_id: Name | None = None
    parent_id: Name | None = None
    group: None = None
    group_index: None = None
    shadow: None = None
    eta: None = None
    expires: Name | None = None
    retries: Literal[0] = 0
    timelimit: tuple[None, None] | None = None
    argsrepr: str | None = None
    kwargsrepr: Name | None = None
    origin: Name | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: Literal[0] = 0
    stamped_headers: None = None
    stamps: Annotated[dict[str, str], Meta(max_length=0)] | None = None
    periodic_task_name: Name | None = None
    redelivered: bool | None = None


class _DeliveryInfo(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    exchange: Name
    routing_key: Name
    redelivered: bool | None = None


class _Properties(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    delivery_tag: Annotated[str, Meta(min_length=1, max_length=1000)]
    body_encoding: Literal["base64"]
    delivery_info: _DeliveryInfo
    correlation_id: Name | None = None
    reply_to: Name | None = None
    delivery_mode: Literal[1, 2] | None = None
    expiration: Name | None = None
    argsrepr: str | None = None
    priority: Annotated[int, Meta(ge=0, le=255)] | None = None


class _Envelope(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    body: str
    content_encoding: Literal["utf-8"]
    content_type: Literal["application/json"]
    headers: _Headers
    properties: _Properties


class _Embedded(msgspec.Struct, forbid_unknown_fields=True):
    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None


class _NoKeywords(msgspec.Struct, forbid_unknown_fields=True):
    """The keyword arguments of an order, which must be empty."""


class _Sender(msgspec.Struct):
    """Headers of an invalid order that help to find its sender."""

    origin: Any = None
    task: Any = None


class _Sent(msgspec.Struct):
    headers: _Sender | UnsetType = UNSET


DecodeBody: TypeAlias = Callable[[bytes], tuple[Any, _NoKeywords, _Embedded]]
"""Function that decodes the body of an order into arguments, keyword arguments and embedded tasks.

It raises msgspec's errors if they do not have the expected types.
"""


def _bodies(arguments: Any) -> DecodeBody:
    """Return a function that decodes the body of an order whose arguments have the types `arguments`.

    Called at import, because msgspec 0.22 crashes if two threads make the first decoder of a type at the same
    time.
    """
    types: Any = (arguments, _NoKeywords, _Embedded)
    return msgspec.json.Decoder(tuple.__class_getitem__(types)).decode


@dataclass(frozen=True)
class _Order:
    """The queues in which a type of order is allowed, and the decoder of its body."""

    queues: Collection[str]
    decode_body: DecodeBody


_ORDERS: Final = {
    keys.DRAIN_TASK: _Order({keys.INGEST_QUEUE}, _bodies(tuple[Kind, Annotated[int, Meta(ge=0, le=MAX_SHARD)]])),
    keys.STRAYS_TASK: _Order({keys.INGEST_QUEUE}, _bodies(tuple[()])),
    keys.NOTIFY_TASK: _Order({keys.NOTIFY_QUEUE}, _bodies(tuple[str])),
    keys.SWEEP_TASK: _Order({keys.BEAT_QUEUE}, _bodies(tuple[()])),
    keys.LIVENESS_TASK: _Order({keys.BEAT_QUEUE}, _bodies(tuple[()])),
    keys.DELIVER_TICK_TASK: _Order({keys.BEAT_QUEUE}, _bodies(tuple[()])),
    keys.ALERT_TICK_TASK: _Order({keys.BEAT_QUEUE}, _bodies(tuple[()])),
    keys.ALERT_TASK: _Order({keys.ALERT_QUEUE}, _bodies(tuple[()])),
    keys.LINK_TICK_TASK: _Order({keys.BEAT_QUEUE}, _bodies(tuple[()])),
    keys.LINK_TASK: _Order({keys.LINK_QUEUE}, _bodies(tuple[()])),
    keys.VERIFY_TASK: _Order({keys.CHECKPOINT_QUEUE}, _bodies(tuple[()])),
    keys.RETENTION_TASK: _Order({keys.CHECKPOINT_QUEUE}, _bodies(tuple[()])),
    keys.ROW_RETENTION_TASK: _Order({keys.CHECKPOINT_QUEUE}, _bodies(tuple[()])),
    keys.DELETE_TASK: _Order({keys.CHECKPOINT_QUEUE}, _bodies(tuple[()])),
    keys.ROLLUP_TASK: _Order({keys.CHECKPOINT_QUEUE}, _bodies(tuple[()])),
}
_DELIVERIES: Final = {
    sink.queue: _bodies(tuple.__class_getitem__(Literal.__getitem__(sink.name))) for sink in SINKS.values()
}
_decode_echo: Final = _bodies(tuple[Name])
_decode: Final = msgspec.json.Decoder(_Envelope).decode
_decode_sent: Final = msgspec.json.Decoder(_Sent).decode


def encode_order(
    task: str,
    args: Sequence[object],
    queue: str,
    expires_at: float,
    order_id: str | None = None,
    *,
    shown: str | None = None,
) -> bytes:
    """Return an order as kombu stores it in a Redis list; `expires_at` is in seconds since 1970.

    Does not use kombu, because no thread may hold kombu's locks while the worker forks a pool process. Without an
    `order_id`, the order has a random one. Flower shows the text `shown`, by default the arguments.
    """
    order_id = order_id or str(uuid.uuid4())
    headers = _Headers(
        task=task,
        id=order_id,
        root_id=order_id,
        expires=datetime.fromtimestamp(expires_at, UTC).isoformat(),
        argsrepr=repr(args) if shown is None else shown,
        kwargsrepr="{}",
        origin=f"{os.getpid()}@{socket.gethostname()}",
        ignore_result=True,
    )
    # The default exchange needs no binding in Redis, and so survives a flush.
    delivery = _DeliveryInfo(exchange="", routing_key=queue)
    properties = _Properties(
        str(uuid.uuid4()), "base64", delivery, correlation_id=order_id, delivery_mode=2, priority=0
    )
    body = base64.b64encode(msgspec.json.encode([args, {}, _Embedded()])).decode()
    return msgspec.json.encode(_Envelope(body, "utf-8", "application/json", headers, properties))


def check_order(raw: bytes, queue: str) -> None:
    """Raise `WrongOrder` unless `raw` is a valid order for this queue."""
    if len(raw) > MAX_ORDER_BYTES:
        raise WrongOrder(f"it has {len(raw):,} bytes, more than {MAX_ORDER_BYTES:,}")
    try:
        envelope = _decode(raw)
        decode_body = _body_decoder(envelope.headers.task, queue)
        arguments, _, _ = decode_body(base64.b64decode(envelope.body, validate=True))
        _check_expiry(envelope.headers.expires)
    except (*DECODE_ERRORS, ValueError) as exc:
        raise WrongOrder(str(exc)) from exc
    if envelope.headers.task == keys.ECHO_TASK and keys.echo_queue(arguments[0]) != queue:
        raise WrongOrder(f"an echo for {arguments[0]!r:.200}")


def sender_of(raw: bytes) -> dict[str, str]:
    """Return the sender and the task of an invalid order, truncated; fields that cannot be read are omitted."""
    try:
        headers = _decode_sent(raw[:MAX_ORDER_BYTES]).headers
    except DECODE_ERRORS:
        return {}
    if headers is UNSET:
        return {}
    return {"sender": f"{headers.origin!s:.200}", "task": f"{headers.task!s:.200}"}


def _body_decoder(task: str, queue: str) -> DecodeBody:
    """Return the decoder for the body of a task's order.

    Raises `WrongOrder` if the task is not allowed in the queue.
    """
    if task == keys.DELIVER_TASK and queue in _DELIVERIES:
        return _DELIVERIES[queue]
    if task == keys.ECHO_TASK and queue not in _ALL_QUEUES:
        return _decode_echo
    known = _ORDERS.get(task)
    if known is None or queue not in known.queues:
        raise WrongOrder(f"the task {task!r:.200} does not belong into the queue {queue}")
    return known.decode_body


def _check_expiry(expires: str | None) -> None:
    if expires is not None and datetime.fromisoformat(expires).year not in _YEARS:
        raise WrongOrder(f"it expires at {expires!r:.200}")


_ALL_QUEUES: Final = {queue for order in _ORDERS.values() for queue in order.queues} | set(_DELIVERIES)
