"""Parses filters of jobs: `status = failed and params.lr < 0.01 and not tags.dataset = "coco"` (docs/filters.md).

or:         and ("or" and)*
and:        not ("and" not)*
not:        "not" not | "(" or ")" | condition
condition:  FIELD ("=" | "!=" | "<" | "<=" | ">" | ">=" | "~" | "!~") VALUE
            | FIELD ["not"] "in" "(" VALUE ("," VALUE)* ")"
            | FIELD "is" ["not"] ("null" | "nan")
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, TypeAlias

from trainwire.schemas.filters.job_fields import Field, WrongField, field_of, shown
from trainwire.schemas.filters.tokens import Token, WrongFilter, tokens_of
from trainwire.schemas.filters.values import VALUES, age_of, number_of

MAX_DEPTH: Final = 50
"""Greatest depth of nested parentheses and `not` operators."""
COMPARISONS: Final = ("=", "!=", "<", "<=", ">", ">=")
ORDERINGS: Final = ("<", "<=", ">", ">=")
MATCHES: Final = ("~", "!~")

Value: TypeAlias = Decimal | str | bool | timedelta | datetime


@dataclass(frozen=True, slots=True)
class Compare:
    """The condition `field operator value`; the operator is one of COMPARISONS or `~` (`!~` becomes `Not`).

    The value has the field's type; for a field of type `free` it is a `Decimal` or a text.
    """

    field: Field
    operator: str
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    """The condition that the field's value is one of `values`."""

    field: Field
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Is:
    """The condition `field is null` (the job has no value of the field) or `field is nan` (the value is NaN).

    `what` is `null` or `nan`; only a field of type `number` can have `nan`.
    """

    field: Field
    what: str


@dataclass(frozen=True, slots=True)
class Not:
    """Negation. A condition on a field that the job lacks is false, so its negation is true."""

    of: Expression


@dataclass(frozen=True, slots=True)
class All:
    """The condition that all `parts` are true (`and`)."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The condition that at least one of `parts` is true (`or`)."""

    parts: tuple[Expression, ...]


Expression: TypeAlias = Compare | In | Is | Not | All | AnyOf


def parse_filter(text: str, now: datetime | None = None) -> Expression | None:
    """Return the syntax tree of a filter, or None for an empty text; raise `WrongFilter` if it is not valid.

    Relative times such as `2d ago` are computed from `now`, by default the current time.
    """
    parser = _Parser(text, now or datetime.now(UTC))
    return None if parser.is_at_end else parser.filter()


def parse_fields(text: str) -> dict[str, Field]:
    """Parse a list such as `params.lr, metrics.loss.best`; return {text as typed: field}, {} for an empty list.

    Raises `WrongFilter` if the list is not valid or contains an unknown field.
    """
    parser = _Parser(text, datetime.now(UTC))
    return {} if parser.is_at_end else parser.fields()


def parse_sort(text: str) -> tuple[Field, bool]:
    """Parse a sort order such as `params.lr` or `-params.lr`; return its field and whether it is descending.

    Raises `WrongFilter` if the text is not exactly one field.
    """
    is_descending = text.lstrip().startswith("-")
    fields = parse_fields(text.replace("-", " ", 1) if is_descending else text)
    if len(fields) != 1:
        raise WrongFilter(f"{len(fields)} fields; sort by one, for example -started", 1)
    return next(iter(fields.values())), is_descending


def fields_in(expression: Expression | None) -> Iterator[Field]:
    """Yield the field of each condition in a filter, with repetitions; yield none if `expression` is None."""
    match expression:
        case Compare() | In() | Is():
            yield expression.field
        case Not():
            yield from fields_in(expression.of)
        case All() | AnyOf():
            for part in expression.parts:
                yield from fields_in(part)
        case None:
            return


class _Parser:
    def __init__(self, text: str, now: datetime) -> None:
        self._tokens = tokens_of(text)
        self._end = Token(len(text.rstrip()) + 1, "", "")
        self._at = self._depth = 0
        self._now = now

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._tokens)

    def filter(self) -> Expression:
        found = self._any_of()
        if not self.is_at_end:
            raise self._unexpected("`and`, `or` or the end")
        return found

    def fields(self) -> dict[str, Field]:
        found: dict[str, Field] = {}
        while not found or self._take(","):
            typed = self._token.source
            found[typed] = self._field()
        if not self.is_at_end:
            raise self._unexpected("a comma or the end")
        return found

    def _any_of(self) -> Expression:
        parts = [self._all()]
        while self._take_word("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self) -> Expression:
        parts = [self._not()]
        while self._take_word("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _not(self) -> Expression:
        token = self._token
        is_not = self._take_word("not")
        if not is_not and not self._take("("):
            return self._condition()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise WrongFilter(f"more than {MAX_DEPTH} parentheses and `not` inside one another", token.column)
        found = Not(self._not()) if is_not else self._any_of()
        if not is_not and not self._take(")"):
            raise self._unexpected(f"`)` for the `(` of column {token.column}")
        self._depth -= 1
        return found

    def _condition(self) -> Expression:
        field = self._field()
        operator = self._next()
        if operator.text in (*COMPARISONS, *MATCHES) and not operator.pieces:
            return self._compare(field, operator)
        if operator.is_word("is"):
            return self._is(field)
        is_not = operator.is_word("not")
        if (is_not and self._take_word("in")) or operator.is_word("in"):
            found = In(field, self._list(field))
            return Not(found) if is_not else found
        self._at -= operator != self._end
        raise self._unexpected("an operator: = != < <= > >= ~ in is")

    def _compare(self, field: Field, operator: Token) -> Expression:
        is_text = field.type in ("text", "word", "free")
        if operator.text in MATCHES and not is_text:
            raise WrongFilter(f"`{operator.text}` compares texts; use = != < <= > >=", operator.column)
        if operator.text not in ("=", "!=", *MATCHES) and field.type in ("word", "truth"):
            raise WrongFilter(f"`{operator.text}` has no meaning for {field.name}; use = or !=", operator.column)
        token = self._token
        value = self._next_text() if operator.text in MATCHES else self._value(field)
        if operator.text in ORDERINGS and field.type == "free" and isinstance(value, str) and not token.is_quoted:
            problem = f"`{shown(token.text)}` is not a number; to compare texts, write it in quotes"
            raise WrongFilter(problem, token.column)
        if operator.text == "!~":
            return Not(Compare(field, "~", value))
        return Compare(field, operator.text, value)

    def _is(self, field: Field) -> Expression:
        is_not = self._take_word("not")
        if not (self._token.is_word("null") or (self._token.is_word("nan") and field.type == "number")):
            raise self._unexpected("`null` or `nan`" if field.type == "number" else "`null`")
        found = Is(field, self._next().text.lower())
        return Not(found) if is_not else found

    def _list(self, field: Field) -> tuple[Value, ...]:
        if not self._take("("):
            raise self._unexpected("`(` after `in`")
        values = [self._value(field)]
        while self._take(","):
            values.append(self._value(field))
        if not self._take(")"):
            raise self._unexpected("`,` or `)`")
        return tuple(values)

    def _field(self) -> Field:
        if not self._token.pieces:
            raise self._unexpected("a field, for example status")
        token = self._next()
        try:
            return field_of(token.pieces)
        except WrongField as exc:
            raise WrongFilter(str(exc), token.column) from exc

    def _next_text(self) -> str:
        if not self._token.pieces:
            raise self._unexpected("a value")
        return self._next().text

    def _value(self, field: Field) -> Value:
        if not self._token.pieces:
            raise self._unexpected("a value")
        token = self._next()
        if field.type == "time":
            return self._time(token)
        if field.type in VALUES:
            value: Value = VALUES[field.type](token)
            return value
        number = None if field.type == "text" or token.is_quoted else number_of(token.text)
        return token.text if number is None else number

    def _time(self, token: Token) -> datetime:
        age = age_of(token.text)
        if token.is_word("now"):
            return self._now
        if age is not None:
            if not self._take_word("ago"):
                raise WrongFilter(
                    f"`{shown(token.text)}` is a duration; write {shown(token.text)} ago", token.column
                )
            try:
                return self._now - age
            except OverflowError as exc:
                raise WrongFilter(f"`{shown(token.text)} ago` is before the year 1", token.column) from exc
        try:
            at = datetime.fromisoformat(token.text)
        except ValueError as exc:
            problem = f"`{shown(token.text)}` is not a time; write 2d ago, 2026-11-24 or 2026-11-24T14:03"
            raise WrongFilter(problem, token.column) from exc
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at

    @property
    def _token(self) -> Token:
        return self._end if self.is_at_end else self._tokens[self._at]

    def _next(self) -> Token:
        token = self._token
        self._at += token is not self._end
        return token

    def _take(self, operator: str) -> bool:
        is_there = self._token.text == operator and not self._token.pieces and not self.is_at_end
        self._at += is_there
        return is_there

    def _take_word(self, word: str) -> bool:
        is_there = self._token.is_word(word)
        self._at += is_there
        return is_there

    def _unexpected(self, expected: str) -> WrongFilter:
        token = self._token
        found = "the filter ends" if self.is_at_end else f"unexpected `{shown(token.text)}`"
        return WrongFilter(f"{found}; expected {expected}", token.column)
