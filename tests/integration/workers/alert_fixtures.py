"""What tests of alerts share: rules in a file, and the log of alerts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import text

from tests.webhook_receiver import Receiver
from trainwire.schemas.backoff import Backoff
from trainwire.stores.postgres.alerts import AlertEntry, find_alerts
from trainwire.workers.alerts.delivery import AlertDelivery
from trainwire.workers.alerts.rules_file import load_rules
from trainwire.workers.alerts.watch import apply_rules
from trainwire.workers.resources import Resources

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NO_BACKOFF: Final = Backoff(first_s=0.0)


def now_ns() -> int:
    """Return the current time; older messages than a day are not reported."""
    return time.time_ns()


@dataclass
class Alerts:
    """Alert rules on the test servers, with one webhook `ops` and what Apprise sends as `team`."""

    resources: Resources
    receiver: Receiver
    path: Path

    def write(self, *rules: str, more: str = "") -> None:
        """Write the file, with the rules that are given as TOML without their names and headers."""
        tables = [f'[[rules]]\nname = "rule {number}"\n{rule}' for number, rule in enumerate(rules, 1)]
        tables = [table if "\nto =" in table else f'{table}\nto = "ops"' for table in tables]
        destinations = (
            f'[destinations.ops]\nwebhook = "{self.receiver.url}"\nsecret = "{SECRET}"\n'
            f'[destinations.team]\napprise = "json://127.0.0.1:{self.receiver.port}/hooks/very-secret"\n'
        )
        self.path.write_text("\n".join([more, destinations, *tables]))

    def begin(self, *rules: str, more: str = "") -> None:
        """Write the file, and apply it once: rules report what happens from then on."""
        self.write(*rules, more=more)
        self.apply()

    def apply(self) -> None:
        """Apply the rules."""
        apply_rules(self.resources, load_rules(self.path))

    def send(self, backoff: Backoff = NO_BACKOFF) -> None:
        """Send waiting alerts."""
        AlertDelivery(self.resources.engine, load_rules(self.path), slice_s=60, backoff=backoff).run()

    @property
    def log(self) -> list[AlertEntry]:
        """All alerts, the oldest first."""
        with self.resources.engine.connect() as connection:
            return find_alerts(connection, limit=1000)[::-1]

    def column(self, name: str) -> list[Any]:
        """Return one field of all alerts."""
        return [getattr(entry, name) for entry in self.log]

    def execute(self, statement: str, **names: object) -> None:
        """Change rows."""
        with self.resources.engine.begin() as connection:
            connection.execute(text(statement), names)
