"""Files of alert rules: what they mean, and errors that name line, value and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from trainwire.workers.alerts.rules_file import UnsetVariable, WrongRules, load_rules

RULES: Final = """\
max_age_h = 12
[destinations.ops]
webhook = "https://ops.example.org/hook/${TOKEN}"
secret = "${ALERT_SECRET}"

[destinations.team]
apprise = "slack://tokens/#training"

[[rules]]
name = "ended badly"
on = ["failed", "lost"]
to = ["team", "ops"]
jobs = 'tags.team = "nlp"'

[[rules]]
name = "loss"
on = "metric"
metric = "loss"
above = 10
to = "team"
"""
ENVIRON: Final = {"ALERT_SECRET": "0123456789abcdef", "TOKEN": "very-secret"}


def _error(tmp_path: Path, text: str) -> WrongRules:
    """Return the error of a file."""
    path = tmp_path / "alerts.toml"
    path.write_text(text)
    with pytest.raises(WrongRules, match=str(path)) as caught:
        load_rules(path, ENVIRON)
    return caught.value


def test_a_file_of_rules(tmp_path: Path) -> None:
    """Rules have their causes and destinations; variables are replaced; secrets are not shown."""
    path = tmp_path / "alerts.toml"
    path.write_text(RULES)
    found = load_rules(path, ENVIRON)
    assert found.max_age_h == 12
    assert [(rule.name, sorted(rule.causes), rule.destinations) for rule in found.rules] == [
        ("ended badly", ["failed", "lost"], ("team", "ops")),
        ("loss", ["metric"], ("team",)),
    ]
    assert [rule.level_of("lost") for rule in found.rules] == ["error", "error"]
    assert found.destinations["ops"].webhook == "https://ops.example.org/hook/very-secret"
    assert "very-secret" not in repr(found)
    assert "0123456789abcdef" not in repr(found)


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ("above = 10", "abov = 10", 19, "unknown key `abov`; did you mean `above`?"),
        ("above = 10", 'above = "x"', 19, "above: Expected `float | null`, got `str`"),
        ("above = 10", "above = nan", 19, 'for NaN write on = "nan"'),
        ("above = 10\n", "", 17, "write for example above = 10.0"),
        ("above = 10", "above = 10\nafter_s = 60", 20, 'after_s has no meaning without on = "no_progress"'),
        ('on = "metric"', 'on = "metrics"', 17, "Invalid enum value 'metrics'; one or more of completed, failed"),
        ('on = "metric"', 'on = "no_progress"', 17, "needs after_s; write for example after_s = 1800"),
        ('on = ["failed", "lost"]', "on = []", 11, "`on` is empty"),
        ('to = "team"\n', 'to = "tem"\n', 20, "there is no destination 'tem' (there are: ops, team)"),
        ('to = "team"\n', "", 15, "missing required field `to`"),
        ("tags.team =", "tag.team =", 13, "did you mean tags.team? (docs/filters.md)"),
        ("https://", "ftp://", 3, "is not an address like https://example.org/hook"),
        ("${ALERT_SECRET}", "short", 4, "openssl rand -base64 32"),
        ('secret = "${ALERT_SECRET}"\n', "", 2, "secret of destination ops"),
        ('apprise = "slack://', 'apprise = "slack', 7, "is not a URL like slack://"),
        ('apprise = "slack://tokens/#training"', "", 6, "needs one address"),
        ('name = "loss"', 'name = "ended badly"', 16, "two rules are named 'ended badly'"),
        ("max_age_h = 12", "max_age_h = 0", 1, "write max_age_h = 24"),
        ("max_age_h = 12", "max_age_h = inf", 1, "max_age_h: Expected `float` <= 1000000.0"),
        ("above = 10", "after_s = 1e12", 19, "after_s: Expected `float` <= 1000000000.0"),
        ('name = "loss"', 'name = "lo\\u0000ss"', 16, "name has NUL, which no stored text has; remove it"),
        ('metric = "loss"', 'metric = "lo\\u0000ss"', 18, "metric has NUL"),
        ("max_age_h = 12", "max_age = 12", 1, "unknown table or key `max_age`; did you mean `max_age_h`?"),
        ('name = "loss"', "", 15, "missing required field `name`"),
        ('"metric"\nmetric', 'metric"\nmetric', 17, "is not TOML"),
    ],
)
def test_errors_name_line_and_remedy(tmp_path: Path, old: str, new: str, line: int, text: str) -> None:
    """Each mistake is reported with the line that it is in, the value, and what to write."""
    exc = _error(tmp_path, RULES.replace(old, new, 1))
    assert text in str(exc)
    assert f"line {line}" in str(exc)


def test_a_destinations_name_has_no_nul(tmp_path: Path) -> None:
    """No stored text has NUL: the rows of its messages could not be written."""
    exc = _error(tmp_path, RULES + '[destinations."a\\u0000b"]\nwebhook = "https://ops.example.org"\n')
    assert "its name has NUL; remove it" in str(exc)


def test_an_unset_variable_is_named(tmp_path: Path) -> None:
    """A variable that is not set for this process is an error of its own kind: it may be set elsewhere."""
    exc = _error(tmp_path, RULES.replace("${TOKEN}", "${NO_SUCH}"))
    assert isinstance(exc, UnsetVariable)
    assert "line 3: webhook names the environment variable NO_SUCH" in str(exc)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The error names the setting, the file and the reason."""
    with pytest.raises(WrongRules, match=r"ALERT_RULES=.*none.toml cannot be read: No such file"):
        load_rules(tmp_path / "none.toml", {})
    (tmp_path / "alerts.toml").write_bytes(b"\xff")
    with pytest.raises(WrongRules, match="is not a text in UTF-8"):
        load_rules(tmp_path / "alerts.toml", {})
