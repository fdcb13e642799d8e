"""Reads the alert rules of operators from a TOML file. Errors name the line, if it is known, and the remedy."""

from __future__ import annotations

import binascii
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from trainwire.schemas.filters.job_filter import parse_filter
from trainwire.schemas.filters.tokens import WrongFilter
from trainwire.schemas.wire.messages import ALERT_LEVELS
from trainwire.stores.settings import WrongSettings
from trainwire.workers.alerts.rules import CAUSES, SECRET_PREFIX, AlertRules, Destination, Hours, Rule

_NEEDED: Final[dict[str, tuple[str, str]]] = {
    "metric": ("metric", 'metric = "loss"'),
    "no_progress": ("after_s", "after_s = 1800"),
    "spool": ("above_mb", "above_mb = 1000"),
}
"""By cause: the key that a rule with this cause must have, and an example."""
_KEYS_OF: Final[dict[str, tuple[str, ...]]] = {
    "metric": ("metric", "nan"),
    "above": ("metric",),
    "below": ("metric",),
    "after_s": ("no_progress",),
    "above_mb": ("spool",),
    "min_level": ("alert",),
}
"""By key: the causes with which a rule may have this key."""
MIN_SECRET_BYTES: Final = 16
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
_RULE_HEADER: Final = r"\s*\[\[\s*rules\s*\]\]"


class WrongRules(WrongSettings):
    """The file of alert rules cannot be used. The text names the file, the remedy and, if known, the line."""


class UnsetVariable(WrongRules):
    """The file refers to an environment variable that this process does not have; the workers may have it."""


TableT = TypeVar("TableT", bound=msgspec.Struct)


def load_rules(path: Path, environ: Mapping[str, str] = os.environ) -> AlertRules:
    """Read the rules from the file.

    `${NAME}` in the texts of a destination is replaced by the variable in `environ`. Raises `WrongRules` if the
    file cannot be read or has a mistake, and its subclass `UnsetVariable` if there is no such variable.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as exc:
        raise WrongRules(f"ALERT_RULES={path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise WrongRules(f"ALERT_RULES={path} is not a text in UTF-8: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise WrongRules(f"ALERT_RULES={path} is not TOML: {exc}; texts stand in quotes") from exc
    return _RulesFile(path, text, environ).rules(document)


class _RulesFile:
    """Checks the content of a file of rules, and converts it to `AlertRules`; raises `WrongRules`."""

    def __init__(self, path: Path, text: str, environ: Mapping[str, str]) -> None:
        self._path = path
        self._lines = text.splitlines()
        self._environ = environ

    def rules(self, document: dict[str, Any]) -> AlertRules:
        for key in document.keys() - set(AlertRules.__struct_fields__):
            raise self._wrong(f"unknown table or key `{key}`{_near(key, AlertRules)}", self._top(key))
        destinations = self._tables(document, "destinations", dict).items()
        rules = self._tables(document, "rules", list)
        checked = AlertRules(
            destinations={name: self._destination(name, table) for name, table in destinations},
            rules=[self._rule(number, table) for number, table in enumerate(rules)],
        )
        self._check_names(checked)
        try:
            age = msgspec.convert(document.get("max_age_h", checked.max_age_h), Hours)
        except msgspec.ValidationError as exc:
            raise self._wrong(f"max_age_h: {exc}; write max_age_h = 24", self._top("max_age_h")) from exc
        return msgspec.structs.replace(checked, max_age_h=age)

    def _tables(self, document: dict[str, Any], key: str, kind: type[Any]) -> Any:
        found = document.get(key, kind())
        values = found.values() if isinstance(found, dict) else found
        if not isinstance(found, kind) or not all(isinstance(table, dict) for table in values):
            written = "[[rules]]" if kind is list else "[destinations.NAME]"
            raise self._wrong(f"`{key}` is not a list of tables; begin each with {written}", self._top(key))
        return found

    def _destination(self, name: str, table: dict[str, Any]) -> Destination:
        header = rf'\s*\[\s*destinations\s*\.\s*["\']?{re.escape(name)}["\']?\s*\]'
        if "\0" in name:
            raise self._wrong(f"destination {name!r}: its name has NUL; remove it", self._line(header))
        found = self._convert(
            {key: self._expanded(value, header, key) for key, value in table.items()},
            Destination,
            f"destination {name}",
            header,
        )
        if (found.webhook is None) == (found.apprise is None):
            remedy = 'write webhook = "https://…" or apprise = "slack://…"'
            raise self._wrong(f"destination {name} needs one address; {remedy}", self._line(header))
        if found.webhook is not None:
            self._check_webhook(name, found, header)
        elif "://" not in (found.apprise or ""):
            problem = f"apprise of destination {name} is not a URL like slack://… or mailto://…"
            raise self._wrong(problem, self._line(header, key="apprise"))
        return found

    def _check_webhook(self, name: str, found: Destination, header: str) -> None:
        if not _is_http(found.webhook or ""):
            problem = f"webhook of destination {name} is not an address like https://example.org/hook"
            raise self._wrong(problem, self._line(header, key="webhook"))
        try:
            is_long = len(found.secret_bytes) >= MIN_SECRET_BYTES
        except binascii.Error:
            is_long = False
        if not is_long:
            problem = f"secret of destination {name} is no text of {MIN_SECRET_BYTES} bytes or more"
            remedy = f"make one with `openssl rand -base64 32`, and write it after {SECRET_PREFIX}"
            raise self._wrong(f"{problem}; {remedy}", self._line(header, key="secret"))

    def _expanded(self, value: Any, header: str, key: str) -> Any:
        def known(found: re.Match[str]) -> str:
            if found[1] not in self._environ:
                problem = f"{key} names the environment variable {found[1]}, which is not set for this process"
                raise UnsetVariable(str(self._wrong(problem, self._line(header, key=key))))
            return self._environ[found[1]]

        return _VARIABLE.sub(known, value) if isinstance(value, str) else value

    def _rule(self, number: int, table: dict[str, Any]) -> Rule:
        label = f"rule {table['name']!r}" if isinstance(table.get("name"), str) else f"rule {number + 1}"
        rule = self._convert(table, Rule, label, _RULE_HEADER, number)
        for key, problem in chain(_texts_with_nul(rule), _problems(rule, table)):
            raise self._wrong(f"{label}: {problem}", self._line(_RULE_HEADER, number, key))
        return rule

    def _check_names(self, found: AlertRules) -> None:
        seen: set[str] = set()
        for number, rule in enumerate(found.rules):
            if rule.name in seen:
                problem = f"two rules are named {rule.name!r}; give each a name of its own, which the log shows"
                raise self._wrong(problem, self._line(_RULE_HEADER, number, "name"))
            seen.add(rule.name)
            for name in rule.destinations or [""]:
                if name not in found.destinations:
                    known = ", ".join(found.destinations) or "none"
                    problem = f"rule {rule.name!r}: there is no destination {name!r} (there are: {known})"
                    remedy = f"add [destinations.{name or 'NAME'}]"
                    raise self._wrong(f"{problem}; {remedy}", self._line(_RULE_HEADER, number, "to"))

    def _convert(
        self, table: dict[str, Any], kind: type[TableT], label: str, header: str, number: int = 0
    ) -> TableT:
        for key in table:
            if key not in kind.__struct_fields__:
                line = self._line(header, number, key)
                raise self._wrong(f"{label}: unknown key `{key}`{_near(key, kind)}", line)
        try:
            return msgspec.convert(table, kind)
        except msgspec.ValidationError as exc:
            wrong_key = next(iter(re.findall(r"`\$\.(\w+)", str(exc))), None)
            problem, _, _ = str(exc).partition(" - at ")
            shown = f"{label}: {wrong_key}: {problem}" if wrong_key else f"{label}: {problem}"
            if wrong_key == "on":
                shown += f"; one or more of {', '.join(CAUSES)}"
            elif wrong_key in {"level", "min_level"}:
                shown += f"; one of {', '.join(ALERT_LEVELS)}"
            raise self._wrong(shown, self._line(header, number, wrong_key)) from None

    def _line(self, header: str, nth: int = 0, key: str | None = None) -> int | None:
        """Return the line number of `key` in the TOML table of the nth line that matches `header` (from 0).

        Without a key, or if it is not found, return the line number of the header; None if there is no such
        header.
        """
        starts = [number for number, line in enumerate(self._lines) if re.match(header, line)]
        if nth >= len(starts):
            return None
        start = starts[nth]
        for number in range(start + 1, len(self._lines) if key else 0):
            if self._lines[number].lstrip().startswith("["):
                break
            if re.match(rf'\s*"?{re.escape(str(key))}"?\s*=', self._lines[number]):
                return number + 1
        return start + 1

    def _top(self, key: str) -> int | None:
        found = rf'\s*\[*\s*"?{re.escape(key)}\b'
        return next((number for number, line in enumerate(self._lines, 1) if re.match(found, line)), None)

    def _wrong(self, problem: str, line: int | None) -> WrongRules:
        place = f"ALERT_RULES={self._path}" + (f", line {line}" if line else "")
        return WrongRules(f"{place}: {problem}")


def _problems(rule: Rule, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, description) for keys of a rule that contradict each other or have an impossible value."""
    if not rule.causes:
        yield "on", f"`on` is empty; write one or more of {', '.join(CAUSES)}"
    for cause, (key, example) in _NEEDED.items():
        if cause in rule.causes and getattr(rule, key) is None:
            yield "on", f'on = "{cause}" needs {key}; write for example {example}'
    if "metric" in rule.causes and rule.above is None and rule.below is None:
        yield "on", 'on = "metric" needs a bound; write for example above = 10.0'
    for key, causes in _KEYS_OF.items():
        if key in table and rule.causes.isdisjoint(causes):
            yield key, f'{key} has no meaning without on = "{causes[0]}"'
    for key in ("above", "below"):
        if math.isnan(getattr(rule, key) or 0.0):
            yield key, f'{key} is not a number; for NaN write on = "nan"'
    try:
        parse_filter(rule.jobs)
    except WrongFilter as exc:
        yield "jobs", f"jobs: {exc} (docs/filters.md)"


def _texts_with_nul(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for each text of a rule that contains NUL, which Postgres cannot store or compare."""
    for key in ("name", "metric", "jobs"):
        if "\0" in (getattr(rule, key) or ""):
            yield key, f"{key} has NUL, which no stored text has; remove it"


def _near(key: str, kind: type[msgspec.Struct]) -> str:
    near = get_close_matches(key, kind.__struct_fields__, 1)
    return f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(kind.__struct_fields__)}"


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
