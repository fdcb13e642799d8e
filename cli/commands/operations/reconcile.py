"""`trainwire reconcile`: finds acknowledged messages that are not in Postgres, for example after a restore."""

from __future__ import annotations

from trainwire.cli.commands.options import DataDir, servers
from trainwire.cli.redis_clients import stream_client
from trainwire.cli.terminal import one_line, say
from trainwire.stack.database import open_database, settings_for
from trainwire.stack.errors import as_problem
from trainwire.stores.postgres.completeness import shown_ranges
from trainwire.workers.errors import Unavailable
from trainwire.workers.operations.reconcile import reconcile as reconcile_all


def reconcile(data_dir: DataDir = None) -> None:
    """List acknowledged messages that Postgres has lost, for example by a restore, and record them as missing.

    Running trainers then resend those of them that are still in their spools. If none is lost, nothing changes.
    """
    settings = settings_for(servers(data_dir), with_redis=True)
    count = 0
    with as_problem(Unavailable), stream_client(settings) as client, open_database(settings) as engine:
        for gone in reconcile_all(engine, client):
            count += gone.count
            say(one_line(f"job {gone.job_id}, {gone.kind} of {gone.source}: {shown_ranges(gone.ranges)}"))
    say(f"{count:,} acknowledged messages are missing in Postgres" if count else "nothing is missing in Postgres")
