"""Findings of `trainwire doctor`: severity, description, and a remedy in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

Level = Literal["ok", "warning", "error"]
SEVERITY: Final[dict[Level, int]] = {"ok": 0, "warning": 1, "error": 2}
"""Severity of a finding by its level; also the exit codes of `trainwire doctor`."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check. `check` is the stable name of the check, for scripts."""

    level: Level
    part: str
    check: str
    says: str
    remedy: str | None = None


Findings = Iterator[Finding]


class Part:
    """Makes findings about one part of the system.

    If the part has several members (such as Redis servers), `member` is the name of one of them.
    """

    def __init__(self, name: str, member: str = "") -> None:
        self.name = name
        self._member = member

    def ok(self, check: str, says: str) -> Finding:
        """Return a finding that states that a check has found no problem."""
        return self._made("ok", check, says, None)

    def warning(self, check: str, says: str, remedy: str) -> Finding:
        """Return a finding about a problem that does not cause a loss of data yet."""
        return self._made("warning", check, says, remedy)

    def error(self, check: str, says: str, remedy: str) -> Finding:
        """Return a finding about something that does not work, or may cause a loss of data."""
        return self._made("error", check, says, remedy)

    def _made(self, level: Level, check: str, says: str, remedy: str | None) -> Finding:
        if self._member:
            check, says = f"{check}-{self._member}", f"{self._member} {says}"
        return Finding(level=level, part=self.name, check=check, says=says, remedy=remedy)


def worst(findings: list[Finding]) -> int:
    """Return the exit code for findings: 0 if there is no problem, 1 for warnings, 2 for errors."""
    return max((SEVERITY[finding.level] for finding in findings), default=0)


def clock(part: Part, theirs_s: float, before_s: float, after_s: float) -> Finding:
    """Return a finding about the difference between a server's clock and the clock of this machine.

    All times are seconds since 1970. `theirs_s` is the server's time, which was read between the local times
    `before_s` and `after_s`.
    """
    off_s = max(0.0, before_s - theirs_s, theirs_s - after_s)
    which = "behind" if theirs_s < before_s else "ahead of"
    says = f"its clock is {off_s:,.1f} s {which} this machine's"
    remedy = "let both machines follow a time server (chrony, systemd-timesyncd)"
    if off_s >= MOST_OFF_S:
        return part.error("clock", says, remedy)
    if off_s >= OFF_S:
        return part.warning("clock", says, remedy)
    return part.ok("clock", "its clock agrees with this machine's")


OFF_S: Final = 2.0
MOST_OFF_S: Final = 300.0
"""Difference from which a wrong clock is an error: Loki refuses lines that are ten minutes in its future."""
