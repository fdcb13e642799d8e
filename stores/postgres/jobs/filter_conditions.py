"""Converts filters of jobs (`trainwire.schemas.filters`) to SQL conditions on training_jobs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, DateTime, Double, Numeric, and_, func, literal, or_, true

from trainwire.schemas.filters.job_fields import Field
from trainwire.schemas.filters.job_filter import All, AnyOf, Compare, Expression, In, Is, Not
from trainwire.stores.postgres.jobs.job_values import as_number, is_float, value_of, without_nan

Condition: TypeAlias = ColumnElement[bool]
_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Condition]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def sql_condition(expression: Expression, now: datetime) -> Condition:
    """Return the condition that a job matches a filter; the duration of a running job ends at `now`."""
    match expression:
        case All():
            return and_(*(sql_condition(part, now) for part in expression.parts))
        case AnyOf():
            return or_(*(sql_condition(part, now) for part in expression.parts))
        case Not():
            return sql_condition(expression.of, now).is_not(true())
        case Is():
            value = value_of(expression.field, now)
            return value.is_(None) if expression.what == "null" else value == literal(math.nan, Double)
        case In():
            return or_(*(_compare(Compare(expression.field, "=", value), now) for value in expression.values))
        case Compare():
            return _compare(expression, now)


def _compare(condition: Compare, now: datetime) -> Condition:
    value, given = value_of(condition.field, now), condition.value
    if condition.operator == "~":
        return _matches(value, str(given))
    if condition.field.type == "free":
        return _compare_free(value, condition.operator, given)
    if condition.field.space == "metrics":
        value = without_nan(value)
    return _OPERATORS[condition.operator](value, _bound(condition.field, given))


def _bound(field: Field, given: Any) -> ColumnElement[Any]:
    """Return the value of a filter as an SQL parameter that is comparable with the field.

    A number may be larger than the type of the field allows, so it is sent as a double or a numeric.
    """
    if isinstance(given, timedelta):
        return literal(given.total_seconds(), Double)
    if isinstance(given, Decimal):
        return literal(float(given), Double) if is_float(field) else literal(given, Numeric)
    return literal(given, DateTime(timezone=True)) if isinstance(given, datetime) else literal(given)


def _compare_free(text: ColumnElement[Any], sign: str, given: Any) -> Condition:
    compare = _OPERATORS[sign]
    if isinstance(given, Decimal):
        result: Condition = compare(as_number(text), literal(given, Numeric))
        # A text that is no number differs from every number.
        return func.coalesce(result, text.is_not(None)) if sign == "!=" else result
    if given.lower() in ("true", "false"):
        return compare(func.lower(text), given.lower())
    return compare(text, given)


def _matches(text: ColumnElement[Any], pattern: str) -> Condition:
    """Return the condition that a text matches a pattern with `*` and `?`; case is ignored.

    A pattern without `*` and `?` matches if the text contains it.
    """
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    if not set("*?") & set(pattern):
        return text.ilike(f"%{escaped}%", escape="\\")
    return text.ilike(escaped.replace("*", "%").replace("?", "_"), escape="\\")
