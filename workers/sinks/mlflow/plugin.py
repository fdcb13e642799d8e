"""MLflow as the workers use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection

from trainwire.stores.mlflow.http import MlflowRefused, MlflowUnavailable
from trainwire.stores.postgres.deletion import Deletion, DeletionPart
from trainwire.workers.findings import Finding
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.backlog import SinkBacklog
from trainwire.workers.sinks.base import Sink, SinkUnavailable
from trainwire.workers.sinks.mlflow.backlog import MetricBacklog, tell_again
from trainwire.workers.sinks.mlflow.deletion import delete_runs
from trainwire.workers.sinks.mlflow.examination import examine
from trainwire.workers.sinks.mlflow.http import mlflow_api
from trainwire.workers.sinks.mlflow.sink import MlflowSink
from trainwire.workers.sinks.plugin import SinkPlugin


class MlflowPlugin(SinkPlugin):
    """Metrics and attempts, mirrored as runs."""

    def is_on(self, settings: Settings) -> bool:
        """Tell whether MLFLOW_TRACKING_URI is set."""
        return settings.mlflow_tracking_uri is not None

    def connect(self, resources: Resources) -> tuple[SinkBacklog[Any, Any], Sink[Any, Any]]:
        """Return the metric rows that wait, and the connections of this process to MLflow."""
        settings = resources.settings
        sink = MlflowSink(mlflow_api(settings.mlflow_tracking_uri or ""), settings.mlflow_experiment)
        return MetricBacklog(MlflowSink.name), sink

    def delete(self, resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
        """Mark the runs that workers made as deleted."""
        try:
            return delete_runs(resources, deletion, part)
        except (MlflowUnavailable, MlflowRefused) as exc:
            raise SinkUnavailable(str(exc)) from exc

    def examine(self, settings: Settings) -> Iterator[Finding]:
        """Yield whether MLflow answers, and whether its experiment can be written."""
        return examine(settings.mlflow_tracking_uri or "", settings.mlflow_experiment)

    def verify(self, _settings: Settings, _connection: Connection, job_id: int) -> str:
        """Return where a run is shown: it is no copy of rows."""
        return f"see `trainwire mlflow {job_id}`"

    def replayed(self, connection: Connection, job_id: int) -> None:
        """Mirror the job's attempts again."""
        tell_again(connection, job_id)


PLUGIN: Final = MlflowPlugin()
