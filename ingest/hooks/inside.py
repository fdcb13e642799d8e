"""Installs hooks into TensorBoard, W&B and MLflow in a process that has a `Run` (`run.hook()`).

It also reports to the launcher that the process has a `Run`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainwire.ingest.run import Run

_NAME: Final = "trainwire_hooks"
"""Name under which `trainwire run` imports the hooks in a process of the training."""
LIBRARIES: Final = ("tensorboard", "wandb", "mlflow")


def announce_run() -> None:
    """Report to the launcher, if any, that this process has a `Run`.

    The launcher then ignores the values that hooks in this process report, except those of libraries that store
    them nowhere else.
    """
    hooks = sys.modules.get(_NAME)
    if hooks is not None:
        hooks.announce_run()


def hook_into(run: Run, libraries: tuple[str, ...]) -> Callable[[], None]:
    """Send all values that this process logs with `libraries` (if empty: all in `LIBRARIES`) to `run` as well.

    Returns a function to call at the end of the run, which logs a summary. Raises `ValueError` for an unknown
    library.
    """
    from trainwire.ingest.hooks.caught import Caught, HookedProcess  # noqa: PLC0415 - of no use without hooks

    unknown = set(libraries) - set(LIBRARIES)
    if unknown:
        names = ", ".join(map(repr, sorted(unknown)))
        raise ValueError(f"hook({names}): write {' or '.join(map(repr, LIBRARIES))}, or nothing for all")
    hooks = _hooks()
    caught = Caught(run, lambda _: run)
    hooks.install_for(HookedProcess(caught).take, libraries or LIBRARIES)
    return lambda: caught.finish(0)


def _hooks() -> ModuleType:
    return sys.modules.get(_NAME) or importlib.import_module("trainwire.ingest.hooks.carrier.trainwire_hooks")
