"""Trainings that are given no number: which job each process reports to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from trainwire.schemas.keys import KINDS, stream_key
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.messages import Completion, Metrics

ROOT = Path(__file__).parents[3]
SAYS = (
    "from trainwire import Run\nwith Run() as run:\n    run.log('here')\n    print(f'{run.job_id}\\n', end='')\n"
)
"""Prints with one write: if stdout is not buffered, `print` writes the newline after lines of other processes."""


def start(valkey: Any, *command: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command with the server's address, and with no other variable of trainwire's or of a launcher."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TRAINWIRE_", "SLURM_"))}
    own = {"PYTHONPATH": str(ROOT), "REDIS_URL": valkey.url, "TRAINWIRE_SETTLE_S": "0.1"}
    return subprocess.Popen(
        command, env={**clean, **own, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[int], str]:
    """Return the job numbers that the process printed, and its stderr; it must have ended well."""
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return [int(line) for line in output.split()], errors


def run(valkey: Any, script: str, **environment: str) -> list[int]:
    """Run a script to its end; return the job numbers that it printed."""
    return finish(start(valkey, sys.executable, "-c", script, **environment))[0]


def bodies(valkey: Any, kind: Any) -> dict[int, list[Any]]:
    """Return the bodies of a kind in all streams, by job, without those that were sent again."""
    found: dict[int, dict[tuple[str, int], Any]] = defaultdict(dict)
    for shard in range(4):
        for _, fields in valkey.client.xrange(stream_key(kind, shard)):
            envelope = open_envelope(fields)
            found[envelope.job_id].setdefault((envelope.source, envelope.seq), decode_body(kind, envelope))
    return defaultdict(list, {job_id: list(messages.values()) for job_id, messages in found.items()})


def completions(valkey: Any) -> dict[int, list[Completion]]:
    """Return the completions of jobs, by job, without those that end a source alone."""
    found = bodies(valkey, "completions")
    return {job_id: [body for body in ends if body.is_of_job] for job_id, ends in found.items()}


def test_a_launch_makes_a_number_and_names_the_job(valkey: Any) -> None:
    """The job gets a number and the script's name; one line on stderr has both, and the page's address."""
    command = (sys.executable, "-m", "trainwire.ingest", "--", "sh", "-c", "echo $TRAINWIRE_JOB_ID")
    (job_id,), errors = finish(start(valkey, *command, TRAINWIRE_PAGE_URL="http://page.test/"))
    line = re.fullmatch(r"trainwire: (sh-[a-z]+-[a-z]+-\d\d) \(job (\d+)\): (.*)\n", errors)
    assert line is not None, errors
    assert (int(line[2]), line[3]) == (job_id, f"http://page.test/#/jobs/{job_id}")
    (metrics,) = bodies(valkey, "metrics").values()
    assert [body.name for body in metrics if body.name] == [line[1]]
    _, quiet = finish(start(valkey, *command, TRAINWIRE_QUIET="on"))
    assert quiet == ""


def test_a_script_under_the_launcher_joins_its_job(valkey: Any) -> None:
    """A first `Run` in the command is of the launcher's job; the next one, as in a sweep, is a new job."""
    script = f"{SAYS}{SAYS}"
    command = (sys.executable, "-m", "trainwire.ingest", "--name", "sweep", "--", sys.executable, "-c", script)
    numbers, errors = finish(start(valkey, *command))
    assert len(set(numbers)) == 2
    assert f"sweep (job {numbers[0]})" in errors
    names = {
        job_id: [body.name for body in said if body.name] for job_id, said in bodies(valkey, "metrics").items()
    }
    assert names[numbers[0]] == ["sweep", "sweep"]  # of the launcher, and of the run in its command
    assert re.fullmatch(r"python-[a-z]+-[a-z]+-\d\d", names[numbers[1]][0])


def test_a_chosen_name_is_kept_and_a_default_one_replaced(valkey: Any) -> None:
    """`--name` goes before the name in the code, and this before a default name: then a second line has it."""
    script = SAYS.replace("Run()", "Run(name='digits')")
    launcher, page = (sys.executable, "-m", "trainwire.ingest"), "http://page.test"
    (job_id,), errors = finish(
        start(valkey, *launcher, "--", sys.executable, "-c", script, TRAINWIRE_PAGE_URL=page)
    )
    first, second = errors.splitlines()
    assert re.fullmatch(rf"trainwire: python-[a-z]+-[a-z]+-\d\d \(job {job_id}\): .*", first)
    assert second == f"trainwire: digits (job {job_id}): {page}/#/jobs/{job_id}"
    (chosen,), errors = finish(
        start(valkey, *launcher, "--name", "cats", "--", sys.executable, "-c", script, TRAINWIRE_PAGE_URL=page)
    )
    assert errors == f"trainwire: cats (job {chosen}): {page}/#/jobs/{chosen}\n"
    names = {
        number: [body.name for body in sent if body.name] for number, sent in bodies(valkey, "metrics").items()
    }
    assert names[job_id][-1] == "digits"
    assert names[chosen] == ["cats", "cats"]


def test_runs_in_a_loop_are_jobs_in_the_order_of_time(valkey: Any) -> None:
    """Twenty runs of one process, one after the other, are twenty jobs, each completed once."""
    script = (
        "from trainwire import Run\n"
        "for number in range(20):\n"
        "    with Run(name='sweep') as run:\n        print(run.job_id)\n"
    )
    numbers = run(valkey, script)
    assert (len(set(numbers)), numbers) == (20, sorted(numbers))
    assert {job_id: len(ends) for job_id, ends in completions(valkey).items()} == dict.fromkeys(numbers, 1)


def test_subprocesses_and_forks_join_the_run_of_their_parent(valkey: Any) -> None:
    """`Run` in a child of a process with an open run is a part of it, without a name and an end of its own."""
    said = SAYS.replace("Run()", "Run(name='child', params={'a': 1})")
    script = (
        "import os, subprocess, sys\n"
        "from trainwire import Run\n"
        "with Run(name='parent', attempt=3) as run:\n"
        "    print(run.job_id, flush=True)\n"
        f"    subprocess.run([sys.executable, '-c', {said!r}])\n"
        "    if not (child := os.fork()):\n"
        "        with Run(name='fork') as forked:\n"
        "            forked.log('here')\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        f"print(subprocess.run([sys.executable, '-c', {SAYS!r}], capture_output=True, text=True).stdout)\n"
    )
    first, child, later = run(valkey, script)
    assert child == first
    assert later != first
    metrics = bodies(valkey, "metrics")[first]
    assert {body.name for body in metrics if body.name} == {"parent"}
    assert {"a": 1} in [body.params for body in metrics]
    assert len(completions(valkey)[first]) == 1
    # Their parent sends again what no worker has acknowledged.
    assert len({(*body.lines, *body.ts) for body in bodies(valkey, "logs")[first]}) == 2
    assert {envelope.attempt for envelope in envelopes(valkey, first)} == {3}


def envelopes(valkey: Any, job_id: int) -> list[Any]:
    """Return the envelopes of all messages of a job."""
    found = [
        open_envelope(fields)
        for kind in KINDS
        for shard in range(4)
        for _, fields in valkey.client.xrange(stream_key(kind, shard))
    ]
    return [envelope for envelope in found if envelope.job_id == job_id]


def test_ranks_of_torchrun_share_a_number(valkey: Any) -> None:
    """Ranks that a launcher started on one machine get one number, and the next launch another."""
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    rank = (
        "import os, subprocess, sys\n"
        f"environment = {{**os.environ, **{variables}}}\n"
        f"command = [sys.executable, '-c', {SAYS + SAYS!r}]\n"
        "ranks = [subprocess.Popen(command, env={**environment, 'RANK': rank}) for rank in '01']\n"
        "sys.exit(max(process.wait() for process in ranks))\n"
    )
    first, second = run(valkey, rank), run(valkey, rank)
    assert sorted(map(first.count, set(first))) == [2, 2]
    assert set(first).isdisjoint(second)
    stated = {body.world_size for job_id in set(first) for body in bodies(valkey, "metrics")[job_id]}
    assert 2 in stated


def test_ranks_that_a_training_spawns_share_a_number(valkey: Any, tmp_path: Path) -> None:
    """Ranks of multiprocessing, which set their variables themselves, get one number; the next launch another."""
    script = tmp_path / "train.py"
    script.write_text(
        "import multiprocessing, os\n"
        "def rank(number):\n"
        "    os.environ.update(RANK=str(number), WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT='12355')\n"
        "    from trainwire import Run\n"
        "    with Run(name='spawned') as run:\n"
        "        print(f'{run.job_id}\\n', end='')\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    ranks = [spawn.Process(target=rank, args=(number,)) for number in range(2)]\n"
        "    [process.start() for process in ranks]\n"
        "    [process.join() for process in ranks]\n"
    )
    launches = [finish(start(valkey, sys.executable, str(script)))[0] for _ in range(2)]
    assert [(len(numbers), len(set(numbers))) for numbers in launches] == [(2, 1), (2, 1)]
    assert launches[0] != launches[1]


def test_a_launch_within_an_open_run_is_a_job_of_its_own(valkey: Any) -> None:
    """`trainwire run` in a process with an open run does not end that run's job."""
    command = [sys.executable, "-m", "trainwire.ingest", "--", "sh", "-c", "echo $TRAINWIRE_JOB_ID"]
    script = (
        "import subprocess\n"
        "from trainwire import Run\n"
        "with Run(name='sweep') as run:\n"
        "    print(run.job_id, flush=True)\n"
        f"    subprocess.run({command!r})\n"
    )
    sweep, trial = run(valkey, script)
    assert sweep != trial
    assert {job_id: len(ends) for job_id, ends in completions(valkey).items()} == {sweep: 1, trial: 1}


def test_a_rank_that_cannot_know_its_launch_is_told_so(valkey: Any) -> None:
    """`Run` raises one sentence with the remedy; the launcher writes it, and runs the command all the same."""
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}
    alone = start(valkey, sys.executable, "-c", SAYS, **ranks)
    _, errors = alone.communicate(timeout=180)
    assert alone.returncode == 1
    assert "rank 1 of 2 ranks has no job number" in errors.splitlines()[-1]
    assert "export TRAINWIRE_JOB_ID with one number for all ranks" in errors
    command = (sys.executable, "-m", "trainwire.ingest", "--", sys.executable, "-c", SAYS)
    _, errors = finish(start(valkey, *command, **ranks))
    assert errors.endswith("; the command runs without trainwire\n")
    assert run(valkey, SAYS, TRAINWIRE_JOB_ID="7", **ranks) == [7]
    assert not [body for body in bodies(valkey, "metrics")[7] if isinstance(body, Metrics) and body.name]
