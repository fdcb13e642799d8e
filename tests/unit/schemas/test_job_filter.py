"""Tests of the language in which jobs are filtered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.schemas.filters.job_fields import COLUMNS, Field
from trainwire.schemas.filters.job_filter import (
    MAX_DEPTH,
    All,
    AnyOf,
    Compare,
    In,
    Is,
    Not,
    parse_fields,
    parse_filter,
    parse_sort,
)
from trainwire.schemas.filters.tokens import MAX_CHARS, WrongFilter

NOW = datetime(2026, 11, 30, tzinfo=UTC)
STATUS, LR, LOSS = Field("", "status"), Field("params", "lr"), Field("metrics", "loss", "last")
FAILED = Compare(STATUS, "=", "failed")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", None),
        ("  ", None),
        ("status = failed", FAILED),
        (
            "status IN (failed) AND not id = 1",
            All((In(STATUS, ("failed",)), Not(Compare(Field("", "id"), "=", Decimal(1))))),
        ),
        ('status=="Failed"', FAILED),
        ("params.lr < 0.01", Compare(LR, "<", Decimal("0.01"))),
        ("params.lr = 1e-3", Compare(LR, "=", Decimal("0.001"))),
        ('params.lr = "0.01"', Compare(LR, "=", "0.01")),
        ("params.lr = auto", Compare(LR, "=", "auto")),
        ('params."batch size" <> 8', Compare(Field("params", "batch size"), "!=", Decimal(8))),
        ("params.opt.'β 1' > -.5", Compare(Field("params", "opt.β 1"), ">", Decimal("-0.5"))),
        ("metrics.loss < 1", Compare(LOSS, "<", Decimal(1))),
        ("metrics.loss.best < 1", Compare(Field("metrics", "loss", "best"), "<", Decimal(1))),
        ("metrics.loss.min < 1", Compare(Field("metrics", "loss", "min"), "<", Decimal(1))),
        ("metrics.loss.max is nan", Is(Field("metrics", "loss", "max"), "nan")),
        ("metrics.val/a.b.last < 1", Compare(Field("metrics", "val/a.b", "last"), "<", Decimal(1))),
        ('metrics."a.best" < 1', Compare(Field("metrics", "a.best", "last"), "<", Decimal(1))),
        ("metrics.best < 1", Compare(Field("metrics", "best", "last"), "<", Decimal(1))),
        ("project = vision", Compare(Field("tags", "project"), "=", "vision")),
        ("tags.group is null", Is(Field("tags", "group"), "null")),
        ("group is null", Is(Field("tags", "group"), "null")),
        ("metrics.loss is nan", Is(LOSS, "nan")),
        ("params.lr IS NOT NULL", Not(Is(LR, "null"))),
        ('name ~ "digits*"', Compare(Field("", "name"), "~", "digits*")),
        ("name !~ 42", Not(Compare(Field("", "name"), "~", "42"))),
        ("name = 42", Compare(Field("", "name"), "=", "42")),
        (r'name = "a\"b\\"', Compare(Field("", "name"), "=", 'a"b\\')),
        ("name = 'and'", Compare(Field("", "name"), "=", "and")),
        ("duration > 1h30m", Compare(Field("", "duration"), ">", timedelta(minutes=90))),
        ("params.lr = abc", Compare(LR, "=", "abc")),
        ("params.lr < 'abc'", Compare(LR, "<", "abc")),
        ('params.lr >= "0.1"', Compare(LR, ">=", "0.1")),
        ("duration > 90", Compare(Field("", "duration"), ">", timedelta(seconds=90))),
        ("started > 2d ago", Compare(Field("", "started"), ">", NOW - timedelta(days=2))),
        ("started <= now", Compare(Field("", "started"), "<=", NOW)),
        ("ended < 2026-11-30", Compare(Field("", "ended"), "<", NOW)),
        ("ended < 2026-11-30T01:00:00+01:00", Compare(Field("", "ended"), "<", NOW)),
        ("archived = true", Compare(Field("", "archived"), "=", True)),
        ("id in (1, 2)", In(Field("", "id"), (Decimal(1), Decimal(2)))),
        ("status not in (failed)", Not(In(STATUS, ("failed",)))),
        ("not status = failed and params.lr = 1", All((Not(FAILED), Compare(LR, "=", Decimal(1))))),
        (
            "status = failed or status = failed and (status = failed or status = failed)",
            AnyOf((FAILED, All((FAILED, AnyOf((FAILED, FAILED)))))),
        ),
    ],
)
def test_a_filter_is_parsed(text: str, parsed: object) -> None:
    """`not` binds before `and`, `and` before `or`; values have the type of their field."""
    assert parse_filter(text, NOW) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("status = failed and parms.lr < 1", "unknown field `parms.lr` at column 21; did you mean params.lr?"),
        ("lr < 1", "unknown field `lr` at column 1; did you mean params.lr or tags.lr or metrics.lr?"),
        ("projct = 1", "unknown field `projct` at column 1; did you mean project?"),
        ("exitcode = 1", "unknown field `exitcode` at column 1; did you mean exit_code?"),
        ("params = 1", "unknown field `params` at column 1; did you mean params.lr?"),
        ("params. = 1", "`params.` has no name after `params.` at column 1; write for example params.lr"),
        ("status = faild", "no status `faild` at column 10; did you mean failed?"),
        ("status < failed", "`<` has no meaning for status at column 8; use = or !="),
        ("id ~ 4", "`~` compares texts at column 4; use = != < <= > >="),
        (
            "id = 1 and params.lr < abc",
            "`abc` is not a number at column 24; to compare texts, write it in quotes",
        ),
        ("tags.version >= v2", "`v2` is not a number at column 17; to compare texts, write it in quotes"),
        ("id = x", "`x` is not a number at column 6; write for example 0.01"),
        ("duration > soon", "`soon` is not a duration at column 12; write 90s, 1h30m or 2d"),
        ("started > 2d", "`2d` is a duration at column 11; write 2d ago"),
        ("started > 99999999w ago", "`99999999w ago` is before the year 1 at column 11"),
        ("started > soon", "`soon` is not a time at column 11; write 2d ago, 2026-11-24 or 2026-11-24T14:03"),
        ("archived = maybe", "`maybe` is neither true nor false at column 12"),
        ("name = ", "the filter ends at column 7; expected a value"),
        ("name", "the filter ends at column 5; expected an operator: = != < <= > >= ~ in is"),
        ("name and", "unexpected `and` at column 6; expected an operator: = != < <= > >= ~ in is"),
        ("(id = 1", "the filter ends at column 8; expected `)` for the `(` of column 1"),
        ("id = 1)", "unexpected `)` at column 7; expected `and`, `or` or the end"),
        ("id in 1", "unexpected `1` at column 7; expected `(` after `in`"),
        ("name is nan", "unexpected `nan` at column 9; expected `null`"),
        ('name = "x', 'no closing " for the text that begins at column 8'),
        ("id ! 1", "unexpected '!' at column 4; put texts with such characters in quotes"),
        ("name = \x00", "unexpected '\\x00' at column 8; no stored text has it"),
        ("name = \udcff", "unexpected '\\udcff' at column 8; no stored text has it"),
        ("(" * 10_000, "10,000 characters at column 4001; use at most 4,000"),
        ("(" * MAX_DEPTH + "(", "more than 50 parentheses and `not` inside one another at column 51"),
        ("not " * (MAX_DEPTH + 1), "more than 50 parentheses and `not` inside one another at column 201"),
    ],
)
def test_an_error_points_at_the_place(text: str, message: str) -> None:
    """An error has the wrong text, its column and a remedy."""
    with pytest.raises(WrongFilter) as raised:
        parse_filter(text, NOW)
    assert str(raised.value) == message


def test_the_limits_themselves_are_allowed() -> None:
    """A filter of the greatest depth and the greatest length is parsed."""
    assert parse_filter("(" * MAX_DEPTH + "id = 1" + ")" * MAX_DEPTH) is not None
    assert parse_filter("id = 1" + " " * (MAX_CHARS - 6)) is not None


WORDS = (
    "params.a metrics.b.best tags.'c d' and or not in is null nan ago <= 1 1e999 2d 2026-01-01 -- x'; é \U0001f98a"
)
PIECES = st.sampled_from([*COLUMNS, *WORDS.split(" "), *"(),=<>~!\"'\\;-%_?*."])


@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map(" ".join)))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text raises anything but `WrongFilter`, and its message is short."""
    try:
        parse_filter(text)
    except WrongFilter as exc:
        column, message = exc.column, str(exc)
    else:
        return
    assert 1 <= column <= len(text) + 1
    assert len(message) < 500


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50))
def test_a_quoted_text_is_any_text(value: str) -> None:
    """In quotes any text is a value or a name, with a backslash before quotes and backslashes."""
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse_filter(f"name = {quoted}") == Compare(Field("", "name"), "=", value)
    if value.strip():
        assert parse_filter(f"tags.{quoted} is null") == Is(Field("tags", value), "null")


def test_columns_and_sort_orders() -> None:
    """Columns are a list of fields by their texts; a sort order is one field with an optional minus."""
    fields = parse_fields('params."a, b",metrics.loss')
    assert fields == {'params."a, b"': Field("params", "a, b"), "metrics.loss": LOSS}
    assert parse_fields("") == {}
    assert parse_sort("-metrics.loss") == (LOSS, True)
    assert parse_sort("params.-x") == (Field("params", "-x"), False)
    for wrong in ("", "-", "id,name", "--id", "no"):
        with pytest.raises(WrongFilter):
            parse_sort(wrong)
