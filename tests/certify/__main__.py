"""`python -m tests.certify`: let every call that leaves a process fail once, in each way, and audit each run."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import sqlalchemy
from sqlalchemy import make_url

from tests.certify.certificate import write_certificate
from tests.certify.failpoints import MODES
from tests.certify.lane import Choice, run_lane
from tests.certify.results import Results
from tests.certify.scenarios import SCENARIOS
from trainwire.schemas.migrations import upgrade
from trainwire.stack.postgres import EmbeddedPostgres


def main() -> int:
    """Execute the chosen runs, or write the certificate; return 1 if a run or a lane has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.certify", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/certify"), help="folder of the results")
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--scenarios", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--roles", nargs="*", help="default: all that make calls in a run without a failure")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES)
    parser.add_argument("--first", type=int, default=1, help="number of the first call to fail")
    parser.add_argument("--last", type=int, default=10_000, help="number of the last call to fail")
    parser.add_argument("--sample", metavar="SEED", help="draw runs by this seed")
    parser.add_argument("--seconds", type=float, default=60, help="duration of a sample")
    parser.add_argument("--unreached", action="store_true", help="only one call of each call site not reached yet")
    parser.add_argument("--sites", nargs="*", default=[], help="only the first call of these call sites")
    parser.add_argument("--certificate", action="store_true", help="write docs/certificate.md from the results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # stops lanes and servers
    options.work.mkdir(parents=True, exist_ok=True)
    results = Results(options.work / "results.jsonl")
    if options.certificate:
        write_certificate(results)
        return 0
    choice = Choice(
        tuple(options.scenarios),
        options.roles and tuple(options.roles),
        tuple(options.modes),
        options.first,
        options.last,
        options.sample,
        options.seconds,
        options.unreached,
        tuple(options.sites),
    )
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="certify-"))
    try:
        with EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"}) as server:
            template = _template(server.url)
            context = multiprocessing.get_context("fork")
            lanes = [
                context.Process(
                    target=run_lane,
                    args=(
                        choice,
                        results,
                        (number, options.lanes),
                        folder / f"lane{number}",
                        _copy(template, number),
                    ),
                )
                for number in range(options.lanes)
            ]
            for lane in lanes:
                lane.start()
            try:
                for lane in lanes:
                    lane.join()
            finally:
                for lane in lanes:
                    lane.terminate()
                    lane.join()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.reload()
    print(f"{results.summary()} ({time.monotonic() - began:.0f} s)")
    return int(any(lane.exitcode for lane in lanes) or results.has_failures)


def _template(url: str) -> str:
    engine = sqlalchemy.create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()
    return url


def _copy(template: str, number: int) -> str:
    name = f"lane{number}"
    url = make_url(template)
    with psycopg.connect(
        url.set(database="postgres").render_as_string(hide_password=False), autocommit=True
    ) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {url.database}")
    return url.set(database=name).render_as_string(hide_password=False)


if __name__ == "__main__":
    raise SystemExit(main())
