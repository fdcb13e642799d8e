"""Hooks into libraries that a training already logs with, installed when the training imports them.

The values go to the launcher, through a socket in the job's folder. Nothing here raises into the training.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from . import channel, tensorboard, wandb

SOCKET_VARIABLE = "TRAINWIRE_HOOKS"
"""The path of the launcher's socket. Without it no hook is installed."""

PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "tensorboard.summary.writer.event_file_writer": tensorboard.patch,
    "tensorboardX.event_file_writer": tensorboard.patch,
    "wandb.sdk.wandb_run": wandb.patch,
}
"""By the name of the module that is imported."""
_patched: set[str] = set()


class ImportHook(MetaPathFinder):
    """Patches some modules of `PATCHES` right after their import."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._is_searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders have, with a loader that patches."""
        del path, target
        if fullname not in self._names or fullname in _patched or self._is_searching:
            return None
        self._is_searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_searching = False
        if spec is not None and spec.loader is not None:
            _patch_after(spec)
        return spec


def _patch_after(spec: ModuleSpec) -> None:
    assert spec.loader is not None  # noqa: S101 - its caller has looked
    execute = spec.loader.exec_module

    def execute_and_patch(module: ModuleType) -> None:
        execute(module)
        _patch(module)

    spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]


def _patch(module: ModuleType) -> None:
    _patched.add(module.__name__)
    try:
        PATCHES[module.__name__](module)
    except Exception as exc:  # noqa: BLE001 - another version of the library
        note_failure(module.__name__, exc)


def install() -> None:
    """Install the hooks, where a launcher listens."""
    path = os.environ.get(SOCKET_VARIABLE)
    if path:
        channel.open_to(path)
        sys.meta_path.insert(0, ImportHook(tuple(PATCHES)))


def install_for(take: Callable[[channel.Record], None], libraries: Sequence[str]) -> None:
    """Give this process's records to `take` from now on, also those of modules that are imported already."""
    channel.send_to(take)
    names = [name for name in PATCHES if name.lower().startswith(tuple(libraries))]
    for name in names:
        if name in sys.modules and name not in _patched:
            _patch(sys.modules[name])
    sys.meta_path.insert(0, ImportHook(names))


def note_failure(where: str, error: BaseException) -> None:
    """Report that a hook could not be installed; the launcher prints it at the end of the run."""
    channel.send({"type": "failure", "by": where, "text": f"{type(error).__name__}: {error}"})
