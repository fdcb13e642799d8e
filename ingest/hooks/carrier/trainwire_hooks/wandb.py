"""Sends the values that a training logs to W&B to the launcher as well; W&B works unchanged."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import channel

if TYPE_CHECKING:
    from types import ModuleType

BY = "wandb"


def patch(module: ModuleType) -> None:
    """Wrap the methods of `wandb.Run` that log values, parameters and summaries."""
    _wrap(module.Run, "log", _log)
    for name, prepare in (
        ("_on_start", report_config),
        ("_config_callback", report_config),
        ("_summary_update_callback", report_summary),
    ):
        if hasattr(module.Run, name):  # private: a version without it logs no parameters
            _wrap(module.Run, name, prepare)


def _wrap(owner: Any, name: str, prepare: Callable[..., Callable[[], None]]) -> None:
    """Replace the method `name` of class `owner` by one that also reports its calls.

    It calls `prepare` with the arguments, then the method, then the function that `prepare` has returned. Errors
    of the two functions are reported to the launcher, and not raised.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(run: Any, *args: Any, **kwargs: Any) -> Any:
        report = harmless(functools.partial(prepare, run, args, kwargs))
        result = original(run, *args, **kwargs)
        if report is not None:
            harmless(report)
        return result

    setattr(owner, name, wrapped)


def harmless(call: Callable[[], Any]) -> Any:
    """Return the result of `call`. If it raises, report the error to the launcher and return None."""
    try:
        return call()
    except Exception as exc:  # noqa: BLE001 - foreign objects
        channel.send({"type": "failure", "by": BY, "text": f"{type(exc).__name__}: {exc}"})
        return None


def _log(run: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], None]:
    """Return a function that sends the numbers of one call of `wandb.Run.log` and their step to the launcher."""
    data = args[0] if args else kwargs["data"]
    step = args[1] if len(args) > 1 else kwargs.get("step")
    return report_of(data, step, int(getattr(run, "_local_step", 0)))


def report_of(data: Mapping[str, Any], step: Any, local_step: int) -> Callable[[], None]:
    """Return a function that sends the numbers of `data`, logged at `step`, to the launcher.

    If `step` is None, `local_step` is used, the current step of the run in W&B. For a step below it, which W&B
    ignores, and for values that are not numbers, the function only reports that they are not stored.
    """
    at = local_step if step is None else int(step) if int(step) == step else float(step)
    if at < local_step:  # W&B leaves it out, with a warning
        return functools.partial(send_not_taken, "a step that has passed")
    values, others = {}, []
    for name, value in _flat("", data):
        number = _number(value)
        if number is None:
            others.append(type(value).__name__)
        else:
            values[name] = number
    record = {"type": "metrics", "by": BY, "step": at, "values": values}

    def send() -> None:
        if values:
            channel.send(record)
        for kind in others:
            send_not_taken(kind)

    return send


def send_not_taken(kind: str) -> None:
    """Report to the launcher that the training logged a value of type `kind`, which trainwire does not store."""
    channel.send({"type": "not taken", "by": BY, "kind": kind})


def report_config(run: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Callable[[], None]:
    """Return a function that reads `run.config`, the parameters, and sends them to the launcher."""

    def send() -> None:
        params = {str(name): value for name, value in dict(run.config).items() if not str(name).startswith("_")}
        channel.send({"type": "params", "by": BY, "values": params})

    return send


def report_summary(_run: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], None]:
    """Return a function that sends the numbers that the training sets in W&B's `run.summary` to the launcher."""
    record = args[0] if args else kwargs["summary_record"]
    found = {".".join(item.key): _number(item.value) for item in record.update}
    values = {name: number for name, number in found.items() if number is not None}
    return functools.partial(channel.send, {"type": "summary", "by": BY, "values": values})


def _flat(prefix: str, data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of each item in nested mappings; keys of the levels are joined by dots, as in W&B."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _number(value: Any) -> float | None:
    """Return `value`, a number or a numpy or torch scalar, as a float; None if it is not a number."""
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "item") and all(size == 1 for size in shape):
        value = value.item()
    return float(value) if isinstance(value, (bool, int, float)) else None
