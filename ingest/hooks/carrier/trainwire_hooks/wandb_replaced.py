"""Replaces W&B by trainwire, for trainings without a W&B account.

W&B runs in its disabled mode: no network, no login, no files in the working folder. In this mode a `wandb.Run`
ignores logged values, so its methods are replaced by ones that count steps and send the values to the launcher.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import channel
from .wandb import BY, harmless, report_config, report_of, report_summary, send_not_taken

if TYPE_CHECKING:
    from types import ModuleType

COUNTED = ("log_artifact", "log_model", "log_code", "save", "alert")
"""Methods that upload data to W&B. Their calls are reported to the launcher as values that are not stored."""
GLOBALS = ("log", "summary", "config", *COUNTED)
"""Attributes of the module `wandb` that refer to the current `wandb.run`."""


def patch(module: ModuleType) -> None:
    """Disable W&B: replace `wandb.init` or `wandb.login` in `module`, which defines one of the two functions."""
    os.environ["WANDB_MODE"] = "disabled"
    name = module.__name__.rpartition("_")[2]
    function = _init(module.init) if name == "init" else _login(module.login)
    setattr(module, name, function)
    wandb = module.wandb
    if hasattr(wandb, name):  # it was imported before
        setattr(wandb, name, function)


def _login(original: Callable[..., bool]) -> Callable[..., bool]:
    @functools.wraps(original)
    def login(*_args: Any, **_kwargs: Any) -> bool:
        return True  # trainings end where it is False

    return login


def _init(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> Any:
        import wandb  # noqa: PLC0415 - of the training

        active = wandb.run
        if active is not None:
            reinit = kwargs.get("reinit", getattr(kwargs.get("settings"), "reinit", None))
            if reinit in (True, "finish_previous"):
                active.finish()
            elif reinit != "create_new":
                return active  # as W&B does in its other modes
        run = original(*args, **{**kwargs, "mode": "disabled"})
        harmless(functools.partial(_replace, run))
        return run

    return init


def _replace(run: Any) -> None:
    """Replace methods of a disabled `wandb.Run` by ones that send values to the launcher; send its parameters."""
    import wandb  # noqa: PLC0415 - of the training
    from wandb.sdk.wandb_summary import Summary  # noqa: PLC0415

    current: dict[str, Any] = {}
    members = {**_log(current), **_ends(), "summary": _summary(Summary, current), "dir": _folder(str(run.dir))}
    members.update((name, _counted(name, getattr(run, name))) for name in COUNTED if hasattr(run, name))
    own = vars(run)
    for name in members:  # versions of 2024 and 2025 have disabled methods in the object itself
        own.pop(name, None)
    object.__setattr__(
        run, "__class__", type("Run", (type(run),), members)
    )  # in 2023 a run has a method of its own
    for name in GLOBALS:
        if hasattr(run, name):
            setattr(wandb, name, getattr(run, name))
    channel.send({"type": "replaced", "by": BY})
    report_config(run, (), {})()
    run.config._set_callback(lambda *_args, **_kwargs: harmless(report_config(run, (), {})))  # noqa: SLF001


def _send(prepare: Callable[..., Callable[[], None]], *arguments: Any) -> None:
    prepare(*arguments)()


def _log(current: dict[str, Any]) -> dict[str, Any]:
    """Return replacements for `log` and `step` of `wandb.Run`; `log` counts steps as W&B does when enabled."""
    next_step = 0

    def log(_self: Any, data: Any, step: Any = None, commit: Any = None, *_args: Any, **_kwargs: Any) -> None:
        if not isinstance(data, Mapping):
            raise TypeError("wandb.log must be passed a dictionary")  # as without the hook
        harmless(functools.partial(_send, report_of, data, step, next_step))
        current.update(data)
        harmless(lambda: count(step, commit))

    def count(step: Any, commit: Any) -> None:
        nonlocal next_step
        if step is not None:
            next_step = max(next_step, int(step))
        if commit or (step is None and commit is None):
            next_step += 1

    return {"log": log, "step": property(lambda _self: next_step)}


def _ends() -> dict[str, Any]:
    def finish(self: Any, *_args: Any, **_kwargs: Any) -> None:
        import wandb  # noqa: PLC0415 - of the training
        from wandb.sdk.lib import module  # noqa: PLC0415

        if wandb.run is self:
            module.unset_globals()

    def leave(self: Any, *_error: object) -> bool:
        self.finish()
        return False

    return {"finish": finish, "join": finish, "__enter__": lambda self: self, "__exit__": leave}


def _summary(kind: Any, current: dict[str, Any]) -> property:
    """Return a replacement for `wandb.Run.summary`, which contains the values in `current`.

    Values that the training sets in it are sent to the launcher.
    """

    def update(record: Any) -> None:
        harmless(functools.partial(_send, report_summary, None, (record,), {}))
        for item in record.update:
            place = current
            for key in item.key[:-1]:
                place = place.setdefault(key, {})
            place[item.key[-1]] = item.value
        for item in record.remove:
            current.pop(item.key[0], None)

    summary = kind(lambda: current)
    summary._set_update_callback(update)  # noqa: SLF001
    return property(lambda _self: summary)


def _folder(path: str) -> property:
    """Return a replacement for the property `wandb.Run.dir`: `path`, a folder created at the first read."""

    def folder(_self: Any) -> str:
        os.makedirs(path, exist_ok=True)
        return path

    return property(folder)


def _counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(_self: Any, *args: Any, **kwargs: Any) -> Any:
        send_not_taken(name)
        return original(*args, **kwargs)

    return call
