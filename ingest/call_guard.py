"""Handles calls of `Run` methods with wrong arguments: warns instead of raising `TypeError`, and corrects them.

Arguments whose meaning is not clear are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from typing import Any, NamedTuple, TypeVar, cast

from trainwire.ingest.process.interruptions import raise_interruption
from trainwire.ingest.sanitize import number, plain_text, shown
from trainwire.schemas.wire.messages import LOG_TYPES

CallT = TypeVar("CallT", bound=Callable[..., Any])


class CallArguments(NamedTuple):
    """The positional arguments (without `self`) and keyword arguments of a call."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def __str__(self) -> str:
        named = (f"{name}={shown(value)}" for name, value in self.named.items())
        return ", ".join([*map(shown, self.positional), *named])


Interpretation = Callable[[CallArguments], CallArguments]
"""A function that turns positional arguments of a wrong call into keyword arguments if their meaning is clear."""


def forgiving(
    interpret: Interpretation = lambda call: call, example: str | None = None
) -> Callable[[CallT], CallT]:
    """Decorate a method of `Run` so that wrong arguments cause a warning instead of a `TypeError`.

    The method is called again with the arguments that `interpret` returns; arguments that the method does not
    accept are left out. If a required argument is missing, the method is not called again and the result is None.
    If no argument is accepted, the warning ends with `example`, a correct call, or else with the signature. A
    `TypeError` that the method itself raises is not caught.
    """

    def decorated(method: CallT) -> CallT:
        @wraps(method)
        def called(self: Any, /, *positional: Any, **named: Any) -> Any:
            try:
                return method(self, *positional, **named)
            except TypeError as exc:
                trace = exc.__traceback__
                if trace is None or trace.tb_next is not None:  # raised within the method
                    raise
            given = CallArguments(positional, named)
            understood = interpret(given)
            kept = _fitting(method, understood)
            name = f"run.{method.__name__}"
            if kept:
                outcome = f"taken as {name}({CallArguments((), kept)}), write it so"
                if left_out := _left_out(method, understood):
                    outcome = f"left out: {left_out}; {outcome}"
            else:
                arguments = "the arguments are" if kept is not None else "it is"
                outcome = f"{arguments} left out; write {example or name + _shown_signature(method)}"
            self._note_misuse(name, f"{name}({given}) does not fit {name}{_shown_signature(method)}: {outcome}")
            return None if kept is None else method(self, **kept)

        return cast("CallT", called)

    return decorated


def metric_call(call: CallArguments) -> CallArguments:
    """Convert the arguments of calls such as `metric("loss", 0.5, 10)` to keyword arguments.

    10 is the step, here and in `metric({"loss": 0.5}, 10)`.
    """
    rest = list(call.positional)
    values = _take_mappings(rest)
    while len(rest) > 1 and isinstance(rest[0], str):
        name, value, *rest = rest
        values[name] = value
    named = dict(call.named)
    if values:
        given = named.get("values")
        named["values"] = {**values, **given} if isinstance(given, Mapping) else values
        _take_step(rest, named)
    return CallArguments(tuple(rest), named)


def log_call(call: CallArguments) -> CallArguments:
    """Convert the arguments of calls such as `log(text, "stderr")` to keyword arguments.

    In `log({"loss": 0.5}, 10)`, 10 is the step; further mappings are added to the first one, and other arguments
    after a mapping are left out. Further positional arguments after a text are formatted into it with `%`, or
    joined to it with spaces, as `print` does.
    """
    if len(call.positional) < 2:
        return call
    text, *rest = call.positional
    named = dict(call.named)
    if isinstance(text, Mapping):
        if more := _take_mappings(rest):
            text = {**text, **more}
        _take_step(rest, named)
        return CallArguments((text, *rest), named)
    if rest[0] in LOG_TYPES and "log_type" not in named:
        named["log_type"] = rest.pop(0)
    return CallArguments((_joined(text, rest),), named)


def _take_mappings(rest: list[Any]) -> dict[Any, Any]:
    """Remove the mappings at the beginning of `rest`, and return all of their items."""
    values: dict[Any, Any] = {}
    while rest and isinstance(rest[0], Mapping):
        values.update(rest.pop(0))
    return values


def _take_step(rest: list[Any], named: dict[str, Any]) -> None:
    if rest and "step" not in named and number(rest[0]) is not None:
        named["step"] = rest.pop(0)


def _joined(text: Any, rest: list[Any]) -> Any:
    try:
        return text if not rest else str.__mod__(text, tuple(rest))
    except Exception as exc:  # noqa: BLE001 - no format string, or one for other values
        raise_interruption(exc)
        return " ".join(map(plain_text, (text, *rest)))


def _fitting(method: Callable[..., Any], call: CallArguments) -> dict[str, Any] | None:
    """Return those arguments of `call` that `method` accepts, by name.

    Return None if a required argument is missing.
    """
    parameters = list(signature(method).parameters.values())[1:]
    by_position = [each.name for each in parameters if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
    names = {each.name for each in parameters}
    takes_all = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
    kept = dict(zip(by_position, call.positional, strict=False))
    kept = {name: value for name, value in call.named.items() if takes_all or name in names} | kept
    needed = {
        each.name
        for each in parameters
        if each.default is Parameter.empty and each.kind is not Parameter.VAR_KEYWORD
    }
    return kept if needed <= kept.keys() else None


def _left_out(method: Callable[..., Any], call: CallArguments) -> str:
    """Return the arguments of `call` that `method` does not accept, as text."""
    parameters = list(signature(method).parameters.values())[1:]
    by_position = sum(each.kind is Parameter.POSITIONAL_OR_KEYWORD for each in parameters)
    takes_all = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
    names = {each.name for each in parameters}
    unknown = {name: value for name, value in call.named.items() if not takes_all and name not in names}
    return str(CallArguments(call.positional[by_position:], unknown))


def _shown_signature(method: Callable[..., Any]) -> str:
    names = []
    for each in list(signature(method).parameters.values())[1:]:
        is_optional = each.default is not Parameter.empty
        names.append(f"**{each.name}" if each.kind is Parameter.VAR_KEYWORD else each.name + "=" * is_optional)
    return f"({', '.join(names)})"
