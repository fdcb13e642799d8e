"""Defines the alert rules of operators and their destinations (docs/alerts.md); `rules_file` reads them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from trainwire.schemas.wire.messages import AlertLevel

StatusCause = Literal["completed", "failed", "ended", "stopped", "preempted", "lost", "stalled"]
OtherCause = Literal["alert", "metric", "nan", "no_progress", "spool", "dead_letters"]
Cause: TypeAlias = StatusCause | OtherCause
CAUSES: Final[tuple[str, ...]] = (*get_args(StatusCause), *get_args(OtherCause))
DEFAULT_LEVELS: Final[dict[str, AlertLevel]] = {
    **dict.fromkeys(CAUSES, "warning"),
    "completed": "info",
    "stopped": "info",
    "preempted": "info",
    "failed": "error",
    "lost": "error",
}
"""Level of an alert by its cause, if the rule sets none. For `run.alert` the level of the call applies."""
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix of Standard Webhooks

MAX_AGE_H: Final = 1e6
MAX_AFTER_S: Final = 1e9
"""Upper bound of `after_s`; Postgres and Python cannot subtract a much longer time from now."""

Positive: TypeAlias = Annotated[float, Meta(gt=0)]
Hours: TypeAlias = Annotated[float, Meta(gt=0, le=MAX_AGE_H)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200)]


class Destination(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An address to which alerts are sent: a webhook with its secret, or an Apprise URL.

    `when_uncertain` sets whether an alert is sent again if the worker was killed while sending it. To a webhook it
    is always sent again, with the same id.
    """

    webhook: str | None = None
    secret: str | None = None
    apprise: str | None = None
    when_uncertain: Literal["keep", "resend"] = "keep"

    @property
    def secret_bytes(self) -> bytes:
        """The key with which requests to a webhook are signed."""
        secret = self.secret or ""
        encoded = secret.removeprefix(SECRET_PREFIX)
        return base64.b64decode(encoded) if secret.startswith(SECRET_PREFIX) else secret.encode()

    @property
    def resends(self) -> bool:
        """Whether an alert is sent again if it is unknown whether it was sent."""
        return self.webhook is not None or self.when_uncertain == "resend"

    def __repr__(self) -> str:
        """Return a text without the address, which is a secret."""
        return "Destination(webhook)" if self.webhook is not None else "Destination(apprise)"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """One alert rule of the rules file. Its fields are the keys that docs/alerts.md explains."""

    name: Name
    on: Cause | list[Cause]
    to: str | list[str]
    jobs: str = ""
    level: AlertLevel | None = None
    metric: Name | None = None
    above: float | None = None
    below: float | None = None
    after_s: Annotated[float, Meta(ge=30, le=MAX_AFTER_S)] | None = None
    above_mb: Positive | None = None
    min_level: AlertLevel = "info"
    at_most_per_h: Annotated[int, Meta(ge=1)] = 100

    @cached_property
    def causes(self) -> frozenset[str]:
        """The causes for which the rule sends alerts, such as `failed` or `metric`."""
        return frozenset([self.on] if isinstance(self.on, str) else self.on)

    @cached_property
    def destinations(self) -> Sequence[str]:
        """The names of the rule's destinations, without duplicates."""
        return tuple(dict.fromkeys([self.to] if isinstance(self.to, str) else self.to))

    def level_of(self, cause: str) -> AlertLevel:
        """Return the level of an alert with this cause."""
        return self.level or DEFAULT_LEVELS[cause]


class AlertRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All rules and destinations of the rules file.

    Occurrences older than `max_age_h` hours cause no alerts.
    """

    rules: list[Rule] = []
    destinations: dict[str, Destination] = {}
    max_age_h: Hours = 24.0

    def with_cause(self, cause: str) -> list[Rule]:
        """Return the rules that send alerts for `cause`."""
        return [rule for rule in self.rules if cause in rule.causes]
