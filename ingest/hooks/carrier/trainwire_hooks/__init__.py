"""Hooks into libraries that a training already logs with, installed when the training imports them.

The values go to the launcher, through a socket in the job's folder. Nothing here raises into the training. Every
Python process of the training imports this module at its start: it imports others only when they are needed.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` costs a millisecond
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SOCKET_VARIABLE = "TRAINWIRE_HOOKS"
"""The path of the launcher's socket. Without it no hook is installed."""
WANDB_VARIABLE = "TRAINWIRE_WANDB"
"""`mirror` takes the values of W&B, `replace` also disables it, `off` leaves it alone."""
PATCHES = {
    "tensorboard.summary.writer.event_file_writer": "tensorboard",
    "tensorboardX.event_file_writer": "tensorboard",
    "wandb.sdk.wandb_run": "wandb",
    "wandb.sdk.wandb_init": "wandb_replaced",
    "wandb.sdk.wandb_login": "wandb_replaced",
    "mlflow.tracking._tracking_service.utils": "mlflow",
    "mlflow.store.artifact.artifact_repository_registry": "mlflow",
    "mlflow.tracking._model_registry.utils": "mlflow",
    "mlflow.tracking.context.registry": "mlflow",
}
"""The module of ours that patches a module of the library."""
MLFLOW_URI = "trainwire:"
"""The address of MLflow's tracking store, where the training has none."""
URI_READERS = ("mlflow", "lightning", "pytorch_lightning", "transformers", "ultralytics")
"""Packages that read MLFLOW_TRACKING_URI, some of them before they import mlflow."""
_patched: set[str] = set()
_redirected = {"mlflow"}
"""Libraries whose values trainwire keeps in their place; none in a process with a `Run`."""


class ImportHook:
    """A finder of `sys.meta_path` that patches the named modules of `PATCHES` right after their import."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._has_mlflow = "mlflow" in map(PATCHES.get, names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the later finders on `sys.meta_path`, with a loader that also patches the module."""
        if fullname in URI_READERS and self._has_mlflow:
            _set_mlflow_uri()
        if fullname not in self._names or fullname in _patched:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return _patched_after_import(spec)
        return None


def _patched_after_import(spec: ModuleSpec) -> ModuleSpec:
    if spec.loader is not None:
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
    return spec


def _patch(module: ModuleType) -> None:
    _patched.add(module.__name__)
    try:
        from importlib import import_module  # noqa: PLC0415 - as all imports here

        import_module(f"{__name__}.{PATCHES[module.__name__]}").patch(module)
    except Exception as exc:  # noqa: BLE001 - another version of the library
        note_failure(module.__name__, exc)
        if PATCHES[module.__name__] == "mlflow":
            _take_mlflow_uri_back()


def _set_mlflow_uri() -> None:
    """Set MLFLOW_TRACKING_URI to trainwire's store, unless an address is configured.

    If the launcher has ended, remove it instead.
    """
    has_own = os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("DATABRICKS_RUNTIME_VERSION")
    socket = os.environ.get(SOCKET_VARIABLE)
    if socket and not os.path.exists(socket):  # a process that outlives the launch, or on another machine
        _take_mlflow_uri_back()
    elif "mlflow" in _redirected and not has_own:
        os.environ["MLFLOW_TRACKING_URI"] = MLFLOW_URI


def _take_mlflow_uri_back() -> None:
    """Remove our address, so that MLflow uses its default store."""
    _redirected.discard("mlflow")
    if os.environ.get("MLFLOW_TRACKING_URI") == MLFLOW_URI:
        del os.environ["MLFLOW_TRACKING_URI"]


def install() -> None:
    """Install the hooks if this process was started by a launcher that reads them."""
    if os.environ.get(SOCKET_VARIABLE):
        sys.meta_path.insert(0, ImportHook(_wanted()))


def _wanted() -> list[str]:
    """Return the modules to patch, by the mode for W&B."""
    mode = os.environ.get(WANDB_VARIABLE) or "mirror"
    left_out = {"mirror": {"wandb_replaced"}, "replace": {"wandb"}}.get(mode, {"wandb", "wandb_replaced"})
    return [name for name, by in PATCHES.items() if by not in left_out]


def install_for(take: Callable[[dict[str, Any]], None], libraries: Sequence[str]) -> None:
    """Install the hooks for `libraries`, and call `take` with each record; works after their import too."""
    from . import channel  # noqa: PLC0415

    channel.send_to(take)
    names = [name for name in _wanted() if name.lower().startswith(tuple(libraries))]
    if "mlflow" in libraries:
        _redirected.add("mlflow")
        _set_mlflow_uri()
    for name in names:
        if name in sys.modules and name not in _patched:
            _patch(sys.modules[name])
    sys.meta_path.insert(0, ImportHook(names))


def announce_run() -> None:
    """Report that this process has a `Run`: the launcher then leaves out its other records.

    MLflow then uses its default store, unless it has already logged to trainwire's.
    """
    from . import channel  # noqa: PLC0415

    if f"{__name__}.mlflow_store" not in sys.modules:
        _take_mlflow_uri_back()
    channel.send({"type": "sdk"})


def note_failure(where: str, error: BaseException) -> None:
    """Report that a hook could not be installed; the launcher prints it at the end of the run."""
    from . import channel  # noqa: PLC0415

    channel.send({"type": "failure", "by": where, "text": f"{type(error).__name__}: {error}"})
