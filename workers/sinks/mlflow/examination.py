"""Checks of MLflow for `trainwire doctor`."""

from __future__ import annotations

from typing import Final

from trainwire.stores.mlflow.http import MISSING, MlflowApi, MlflowRefused, MlflowUnavailable, plain_send
from trainwire.workers.findings import Findings, Part

MLFLOW: Final = Part("mlflow")


def examine(uri: str, experiment: str) -> Findings:
    """Yield whether MLflow answers us, and whether its experiment can be written."""
    try:
        found = MlflowApi(plain_send(uri)).get("experiments/get-by-name", experiment_name=experiment)
    except MlflowRefused as exc:
        if exc.code == MISSING:
            yield MLFLOW.ok("answers", f"answers; the experiment {experiment!r} is made when it is needed")
        else:
            yield MLFLOW.error("answers", f"refuses: {exc}", "look at its log, and at MLFLOW_TRACKING_URI")
        return
    except MlflowUnavailable as exc:
        yield MLFLOW.error(
            "answers", str(exc), "start it, or correct MLFLOW_TRACKING_URI; metrics wait in Postgres"
        )
        return
    if found.get("experiment", {}).get("lifecycle_stage") == "deleted":
        says = f"the experiment {experiment!r} is deleted, and everything waits"
        yield MLFLOW.error("experiment", says, "restore it (mlflow experiments restore), or set MLFLOW_EXPERIMENT")
    else:
        yield MLFLOW.ok("answers", f"answers, with the experiment {experiment!r}")
