"""Registers trainwire with MLflow: as tracking store, as artifact repository and as provider of tags.

Only factory functions are registered, because `mlflow_store` imports MLflow, which is still being imported when
this module runs.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

from . import (
    MLFLOW_URI,
    channel,  # imported here so that it is closed after MLflow has ended the active run at exit
    note_failure,
)

SCHEME = "trainwire"
JOB_TAG, ATTEMPT_TAG = "job_id", "attempt"
"""Names of the tags on a run in MLflow that give the number and the attempt of trainwire's job."""
_NO_REGISTRY = (
    "trainwire keeps no model registry: call mlflow.set_registry_uri with the address of one, such as "
    "'sqlite:///mlflow.db', or set MLFLOW_REGISTRY_URI"
)


def patch(module: ModuleType) -> None:
    """Register trainwire in the plugin registry of `module`, one of the MLflow modules in `_REGISTER`."""
    _REGISTER[module.__name__](module)


def _register_store(module: ModuleType) -> None:
    registry = module._tracking_store_registry

    def build(artifact_uri: str | None = None, **_uri: Any) -> Any:
        try:
            from . import mlflow_store  # noqa: PLC0415

            return mlflow_store.open_store()
        except Exception as exc:  # noqa: BLE001 - another version of MLflow: it keeps its values itself
            note_failure("mlflow", exc)
            default = getattr(module, "_get_default_tracking_uri", lambda: "./mlruns")()
            return registry.get_store_builder(default)(store_uri=default, artifact_uri=artifact_uri)

    registry.register(SCHEME, build)


def _register_artifacts(module: ModuleType) -> None:
    def build(artifact_uri: str, *_args: Any, **_kwargs: Any) -> Any:
        from .mlflow_artifacts import RecordedArtifacts  # noqa: PLC0415

        return RecordedArtifacts(artifact_uri)

    module._artifact_repository_registry.register(SCHEME, build)


def _register_models(module: ModuleType) -> None:
    original = module._get_store_registry

    def build(*_args: Any, **_kwargs: Any) -> Any:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
        from mlflow.protos.databricks_pb2 import FEATURE_DISABLED  # noqa: PLC0415

        raise MlflowException(_NO_REGISTRY, error_code=FEATURE_DISABLED)

    def get_store_registry() -> Any:
        registry = original()
        registry.register(SCHEME, build)
        return registry

    module._get_store_registry = get_store_registry  # type: ignore[attr-defined]


def _register_tags(module: ModuleType) -> None:
    module._run_context_provider_registry.register(JobTags)


class JobTags:
    """MLflow plugin that adds two tags to runs on the user's MLflow server: job number and attempt.

    With these tags, trainwire's MLflow sink finds the run of a job on the server.
    """

    def in_context(self) -> bool:
        """Return whether the run that MLflow is creating gets the tags with job number and attempt.

        The tags are added if this process belongs to a trainwire job, its tracking store is not trainwire's own,
        and no other run is active (a nested run gets none).
        """
        mlflow = sys.modules["mlflow"]
        return (
            bool(os.environ.get("TRAINWIRE_JOB_ID"))
            and mlflow.get_tracking_uri() != MLFLOW_URI
            and mlflow.active_run() is None
        )

    def tags(self) -> dict[str, str]:
        """Return the tags: the job's number, and its attempt if it is known; report the run as not taken."""
        channel.send({"type": "not taken", "by": "mlflow", "kind": "run in a store that the training has chosen"})
        named = {JOB_TAG: "TRAINWIRE_JOB_ID", ATTEMPT_TAG: "TRAINWIRE_ATTEMPT"}
        return {tag: os.environ[name] for tag, name in named.items() if os.environ.get(name)}


_REGISTER = {
    "mlflow.tracking._tracking_service.utils": _register_store,
    "mlflow.store.artifact.artifact_repository_registry": _register_artifacts,
    "mlflow.tracking._model_registry.utils": _register_models,
    "mlflow.tracking.context.registry": _register_tags,
}
