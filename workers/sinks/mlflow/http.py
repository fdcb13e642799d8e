"""The connection to MLflow for who writes: MLflow's own client sends, without its retries that last minutes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import requests

from trainwire.stores.mlflow.http import TIMEOUT_S, MlflowApi, no_answer

_NEVER: Final[frozenset[int]] = frozenset()


@cache
def mlflow_api(url: str) -> MlflowApi:
    """Return this process's connections to an MLflow server, with every kind of credentials that MLflow knows."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import: its makers need not know of us
    # Takes seconds and a hundred megabytes: for the deliverer alone, and only where there is an MLflow.
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.utils import credentials, rest_utils  # noqa: PLC0415

    get_credentials: Any = credentials.get_default_host_creds
    http_request: Any = rest_utils.http_request

    def send(
        method: str, path: str, *, params: Mapping[str, Any] | None = None, data: bytes | None = None
    ) -> requests.Response:
        try:
            answer: requests.Response = http_request(
                get_credentials(url),
                path,
                method,
                max_retries=0,
                retry_codes=_NEVER,
                raise_on_status=False,
                respect_retry_after_header=False,
                timeout=TIMEOUT_S,
                extra_headers={"Content-Type": "application/json"},
                params=params,
                data=data,
            )
        except MlflowException as exc:
            raise no_answer(url, exc.__context__ or exc) from exc
        return answer

    return MlflowApi(send)
