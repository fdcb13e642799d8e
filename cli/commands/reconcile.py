"""`trainwire reconcile`: after a restore of Postgres, which acknowledged messages are gone."""

from __future__ import annotations

from trainwire.cli.commands.options import DataDir, servers
from trainwire.cli.terminal import one_line, say
from trainwire.stack.database import open_database, settings_for
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.completeness import shown_ranges
from trainwire.stores.postgres.connections import open_redis, open_stream_client
from trainwire.workers.errors import Unavailable
from trainwire.workers.operations.reconcile import reconcile as reconcile_all


def reconcile(data_dir: DataDir = None) -> None:
    """Name the acknowledged messages that Postgres has lost by a restore, and count them as missing from now on.

    Trainers that live send again what they still have. Without a restore it changes nothing.
    """
    settings = settings_for(servers(data_dir), with_redis=True)
    client = open_stream_client(settings) or open_redis(settings)
    count = 0
    try:
        with open_database(settings) as engine:
            for gone in reconcile_all(engine, client):
                count += gone.count
                say(one_line(f"job {gone.job_id}, {gone.kind} of {gone.source}: {shown_ranges(gone.ranges)}"))
    except Unavailable as exc:
        raise Problem(str(exc)) from exc
    finally:
        client.close()
    say(f"{count:,} acknowledged messages are missing in Postgres" if count else "nothing is missing in Postgres")
