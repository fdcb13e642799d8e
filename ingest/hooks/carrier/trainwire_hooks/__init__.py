"""Patches TensorBoard, W&B and MLflow when a training imports them, and sends the values they log to the launcher.

The launcher (`trainwire run`) listens on a Unix socket. Exceptions in this package's code never reach the
training. Every Python process of the training imports this module at startup, so it imports others lazily.
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
"""Environment variable with the path of the launcher's Unix socket. Without it no hook is installed."""
WANDB_VARIABLE = "TRAINWIRE_WANDB"
"""Environment variable with the mode for W&B:

`mirror` copies its values, `replace` also disables W&B, `off` installs no hook into it.
"""
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
"""Module of a library -> the module of this package that patches it."""
MLFLOW_URI = "trainwire:"
"""Tracking URI of trainwire's own MLflow store, set where the training configures no other."""
URI_READERS = ("mlflow", "lightning", "pytorch_lightning", "transformers", "ultralytics")
"""Packages that read MLFLOW_TRACKING_URI, some of them before they import mlflow."""
_patched: set[str] = set()
_redirected = {"mlflow"}
"""Libraries that log to trainwire instead of their own store.

A process with a `Run` has none, because it reports its values itself.
"""


class ImportHook:
    """A finder on `sys.meta_path` that patches each module in `names` (keys of `PATCHES`) after its import."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._has_mlflow = "mlflow" in map(PATCHES.get, names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of `names` with the other finders of `sys.meta_path`, and return its spec.

        The loader in the spec patches the module after executing it. Return None for a module that is not in
        `names`, was already patched or is not found. Before a package in `URI_READERS`, set MLflow's tracking URI
        if a module of MLflow is in `names`.
        """
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
    """Set MLFLOW_TRACKING_URI to trainwire's store, unless the user has configured another store.

    If the launcher has ended (its socket does not exist), remove trainwire's URI instead, so that MLflow uses its
    default store.
    """
    has_own = os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("DATABRICKS_RUNTIME_VERSION")
    socket = os.environ.get(SOCKET_VARIABLE)
    if socket and not os.path.exists(socket):  # a process that outlives the launch, or on another machine
        _take_mlflow_uri_back()
    elif "mlflow" in _redirected and not has_own:
        os.environ["MLFLOW_TRACKING_URI"] = MLFLOW_URI


def _take_mlflow_uri_back() -> None:
    """Remove trainwire's URI from MLFLOW_TRACKING_URI, so that MLflow uses its default store."""
    _redirected.discard("mlflow")
    if os.environ.get("MLFLOW_TRACKING_URI") == MLFLOW_URI:
        del os.environ["MLFLOW_TRACKING_URI"]


def install() -> None:
    """Install the import hook if a launcher started this process (`SOCKET_VARIABLE` is set)."""
    if os.environ.get(SOCKET_VARIABLE):
        sys.meta_path.insert(0, ImportHook(_wanted()))


def _wanted() -> list[str]:
    """Return the names of the modules to patch; they depend on the mode in `WANDB_VARIABLE`."""
    mode = os.environ.get(WANDB_VARIABLE) or "mirror"
    left_out = {"mirror": {"wandb_replaced"}, "replace": {"wandb"}}.get(mode, {"wandb", "wandb_replaced"})
    return [name for name, by in PATCHES.items() if by not in left_out]


def install_for(take: Callable[[dict[str, Any]], None], libraries: Sequence[str]) -> None:
    """Install the hooks for `libraries`; each calls `take` with a dict of the values that the training logs.

    Libraries that are already imported are patched at once, the others when the training imports them.
    """
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
    """Report to the launcher that this process has its own `Run`.

    The launcher then ignores the values that hooks in this process report, except those of libraries that store
    them nowhere else. MLflow uses its default store from now on, unless trainwire's store is already in use here.
    """
    from . import channel  # noqa: PLC0415

    if f"{__name__}.mlflow_store" not in sys.modules:
        _take_mlflow_uri_back()
    channel.send({"type": "sdk"})


def note_failure(where: str, error: BaseException) -> None:
    """Report to the launcher that the hook into module `where` failed; shown in the summary after the command."""
    from . import channel  # noqa: PLC0415

    channel.send({"type": "failure", "by": where, "text": f"{type(error).__name__}: {error}"})
