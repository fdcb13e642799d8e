"""Reports unexpected errors to Sentry, or to another server with its protocol, if SENTRY_DSN is set."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

from trainwire.schemas.extras import install_command
from trainwire.stores.settings import StoreSettings, WrongSettings

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

_TAGS: Final = frozenset({"job_id", "stream", "sink", "part"})
"""The fields of log events that reports include; others may have data of trainings."""


def report_errors(settings: StoreSettings, process: str) -> None:
    """Report errors of this process and of its forked children from now on, tagged with the name `process`.

    These are exceptions that nothing handles, in tasks too, and log events of the level error, if logging was
    configured with `report_event`. Without `SENTRY_DSN` nothing is imported. Raises `WrongSettings` if the DSN is
    invalid or sentry-sdk is not installed. Reports have no values of variables and no requests: these may have
    secrets and data of trainings.
    """
    if settings.sentry_dsn is None:
        return
    try:
        import sentry_sdk  # noqa: PLC0415 - an extra
        from sentry_sdk.integrations.logging import LoggingIntegration  # noqa: PLC0415 - as above
        from sentry_sdk.utils import BadDsn  # noqa: PLC0415 - as above
    except ImportError as exc:
        raise WrongSettings(f"SENTRY_DSN is set, which needs: {install_command('sentry')}") from exc

    try:
        sentry_sdk.init(
            dsn=settings.sentry_dsn.get_secret_value(),
            release=f"trainwire@{importlib.metadata.version('trainwire')}",
            send_default_pii=False,
            include_local_variables=False,
            before_send=_without_arguments,
            auto_enabling_integrations=False,  # that of Starlette fails with a method as middleware
            integrations=[LoggingIntegration(level=None, event_level=None), *_integrations(process)],
        )
    except BadDsn as exc:
        raise WrongSettings(f"SENTRY_DSN is not https://KEY@HOST/PROJECT: {exc}") from exc
    sentry_sdk.set_tag("process", process)


def _integrations(process: str) -> list[Any]:
    if process not in {"worker", "beat"}:
        return []
    from sentry_sdk.integrations.celery import CeleryIntegration  # noqa: PLC0415 - imports Celery

    return [CeleryIntegration(propagate_traces=False)]


def _without_arguments(event: Event, _hint: Hint) -> Event:
    """Remove the arguments of a task from a report."""
    event.get("extra", {}).pop("celery-job", None)
    return event


def report_event(_logger: object, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Report a log event of the level error, with the exception that it names; a processor of structlog.

    It does nothing in a process that has not called `report_errors`.
    """
    if method in {"error", "exception", "critical"} and (sentry_sdk := sys.modules.get("sentry_sdk")):
        with sentry_sdk.new_scope() as scope:
            scope.set_tag("event", fields["event"])
            for name in _TAGS & fields.keys():
                scope.set_tag(name, str(fields[name]))
            error = fields.get("exc_info")
            if error or method == "exception":
                sentry_sdk.capture_exception(error if isinstance(error, BaseException) else sys.exc_info())
            else:
                sentry_sdk.capture_message(str(fields["event"]), level="error")
    return fields
