"""Checks of alerts: the rules file can be parsed, and no destination has failed to confirm an alert."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from trainwire.schemas.extras import install_command
from trainwire.stores.postgres.alerts import DestinationHealth, destination_health
from trainwire.stores.postgres.deliveries import counted
from trainwire.workers.alerts.rules_file import UnsetVariable, WrongRules, load_rules
from trainwire.workers.findings import Findings, Part

PART: Final = Part("alerts")


def check(path: Path, connection: Connection) -> Findings:
    """Yield findings about the rules file, apprise (if a destination needs it) and the alerts to each destination.

    If the file cannot be loaded, only that is reported.
    """
    try:
        rules = load_rules(path)
    except UnsetVariable as exc:
        yield PART.warning("rules", str(exc), "run doctor where the variables of the alert worker are set")
        return
    except WrongRules as exc:
        yield PART.error("rules", str(exc), "correct the file; workers send no alerts until then")
        return
    destinations = counted(len(rules.destinations), "destination")
    yield PART.ok("rules", f"{path} has {counted(len(rules.rules), 'rule')} and {destinations}")
    needs_apprise = any(destination.apprise is not None for destination in rules.destinations.values())
    if needs_apprise and find_spec("apprise") is None:
        yield PART.error("apprise", "the package apprise is not installed here", install_command("alerts"))
    for name in rules.destinations:
        yield from _destination(name, destination_health(connection, name))


def _destination(name: str, health: DestinationHealth) -> Findings:
    check = f"destination-{name}"
    if health.down_since is not None:
        text = f"{name} has confirmed nothing since {health.down_since:%Y-%m-%d %H:%M} UTC: {health.last_error}"
        remedy = f"trainwire alert test {name}; {counted(health.waiting, 'alert')} are sent when it answers"
        yield PART.error(check, text, remedy)
    elif health.failed or health.uncertain:
        text = f"{name}: of the last day {health.failed:,} alerts failed, {health.uncertain:,} may have arrived"
        yield PART.warning(check, text, "see trainwire alerts; trainwire alert resend ID sends one again")
    else:
        yield PART.ok(check, f"{name} has no alert that failed; {health.waiting:,} wait")
