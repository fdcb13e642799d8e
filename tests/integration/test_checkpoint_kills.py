"""Uploads and downloads killed at each request: an offered checkpoint always has the training's bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.factories import drain
from tests.integration.conftest import Bucket
from tests.processes import ROOT
from trainwire.cli.commands.jobs.checkpoints import download
from trainwire.schemas.checkpoint_keys import S3Uri, upload_folder_of
from trainwire.stores.files.s3 import open_s3
from trainwire.stores.postgres.checkpoints import find_checkpoints, find_source
from trainwire.workers.checkpoints.verification import Verification
from trainwire.workers.resources import Resources

Files = Mapping[str, bytes]
TIMEOUT_S: Final = 180
LARGE: Final = 6 * 1024 * 1024
"""Two parts of five megabytes at most."""

KILLER: Final = """
import itertools, os, shutil, signal, sys, threading
from pathlib import Path
import botocore.httpsession

at, moment = int(os.environ.get("KILL_AT", "0")), os.environ.get("KILL_MOMENT")
numbers, lock, is_armed = itertools.count(1), threading.Lock(), False
send = botocore.httpsession.URLLib3Session.send

def reach(number, now):
    if number == at and moment == now:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(self, request):
    if not is_armed:
        return send(self, request)
    with lock:
        number = next(numbers)
        reach(number, "before")
    answer = send(self, request)
    reach(number, "after")
    return answer

botocore.httpsession.URLLib3Session.send = counted
"""

TRAINER: Final = (
    KILLER
    + """
import trainwire.ingest.uploads.transfer
import redis
from trainwire import Run
from trainwire.schemas.keys import stream_key

trainwire.ingest.uploads.transfer.PART_BYTES = 5 * 1024 * 1024
path, form = Path(sys.argv[1]), sys.argv[2]
run = Run(42)

def save(step):
    source = path / f"step{step}" / form
    if source.is_file():
        (path / form).write_bytes(source.read_bytes())
    else:
        shutil.rmtree(path / form, ignore_errors=True)
        (path / form).mkdir()
        for file in source.iterdir():
            (path / form / file.name).write_bytes(file.read_bytes())
    run.checkpoint(path / form, kind="last", epoch=1, step=step)

save(1)
client = redis.Redis.from_url(os.environ["REDIS_URL"])
while not client.xlen(stream_key("checkpoints", 42 % 4)):
    threading.Event().wait(0.01)
print("saved", flush=True)
sys.stdin.readline()
is_armed = True
save(2)
run.finish(timeout_s=120)
print("requests:", next(numbers) - 1, flush=True)
"""
)


class Training:
    """A script that saves twice under one key; the second upload may be killed at one of its requests."""

    def __init__(self, resources: Resources, bucket: Bucket, folder: Path, form: str) -> None:
        self._resources, self._bucket, self._folder, self._form = resources, bucket, folder, form
        self.steps: dict[int, Files] = {}
        for step in (1, 2):
            self.steps[step] = files = {"a": b"a%d" % step, "b": bytes([step]) * LARGE, f"only{step}": b""}
            source = folder / f"step{step}" / form
            if form == "file.pt":
                self.steps[step] = files = {"": bytes([step]) * LARGE}
                source = folder / f"step{step}"
                files = {form: files[""]}
            source.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                (source / name).write_bytes(data)

    def run(self, kill_at: int, moment: str) -> int | None:
        """Train, verify the first checkpoint before the second is saved; return the requests of the second."""
        settings = self._resources.settings
        env = os.environ | {
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "TRAINWIRE_CHECKPOINT_BUCKET": self._bucket.name,
            "TRAINWIRE_ATTEMPT": "1",
            "TRAINWIRE_SETTLE_S": "0.1",
            "PYTHONPATH": str(ROOT),
            "KILL_AT": str(kill_at),
            "KILL_MOMENT": moment,
        }
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(self._folder), self._form],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        self.verify()
        out, _ = process.communicate("\n", timeout=TIMEOUT_S)
        if process.returncode == -signal.SIGKILL:
            return None
        assert process.returncode == 0
        (count,) = re.findall(r"requests: (\d+)", out)
        return int(count)

    def verify(self) -> None:
        """Store the rows that have come, and verify them."""
        drain(self._resources, "checkpoints", 42)
        Verification(self._resources.engine, open_s3, [f"s3://{self._bucket.name}/"], slice_s=60).run()

    def offered(self) -> dict[str, Files]:
        """Download the last checkpoint and every verified one; return their files."""
        with self._resources.engine.connect() as connection:
            listed = [str(file.seq) for file in find_checkpoints(connection, 42) if file.state == "verified"]
            sources = {which: find_source(connection, 42, which) for which in (*listed, "last")}
        found: dict[str, Files] = {}
        for which, source in sources.items():
            target = self._folder / f"download-{which}"
            download(open_s3(), source, target, force=True, advance=lambda _: None)
            found[which] = files_of(target)
        return found


def files_of(path: Path) -> Files:
    """Return the names and bytes of a file, whose name is empty, or of all files of a folder."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def training(resources: Resources, bucket: Bucket, tmp_path: Path) -> Callable[[str], Training]:
    """Give a function that creates a training."""
    return lambda form: Training(resources, bucket, tmp_path, form)


UPLOADS: Final = {"folder": 7, "file.pt": 4}
"""How many requests the second upload has: of a folder two small files, a file in two parts, the manifest."""
# After one request the store has the same objects as before the next.
KILLS: Final = [
    (form, number, moment)
    for form, count in UPLOADS.items()
    for number, moment in (*((number, "before") for number in range(1, count + 1)), (count, "after"))
]


@pytest.mark.parametrize("form", list(UPLOADS))
def test_an_upload_that_is_not_killed(training: Callable[[str], Training], form: str) -> None:
    """Both checkpoints are offered unchanged; the test below kills at every request."""
    trained = training(form)
    assert trained.run(0, "never") == UPLOADS[form]
    trained.verify()
    assert trained.offered() == {"1": trained.steps[1], "2": trained.steps[2], "last": trained.steps[2]}


@pytest.mark.parametrize(("form", "number", "moment"), KILLS)
def test_a_killed_upload_damages_no_checkpoint(
    *, training: Callable[[str], Training], bucket: Bucket, form: str, number: int, moment: str
) -> None:
    """After a kill before or after any request of the second upload, the first is still offered, complete."""
    trained = training(form)
    assert trained.run(number, moment) is None
    trained.verify()
    assert trained.offered() == {"1": trained.steps[1], "last": trained.steps[1]}
    keys = [found["Key"] for found in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]]
    folders = {upload_folder_of(S3Uri(bucket.name, "checkpoints/42/"), key) for key in keys}
    assert None not in folders, "the sweep can find every remaining upload"


DOWNLOADER: Final = (
    KILLER
    + """
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.stores.postgres.checkpoints import CheckpointSource
from trainwire.stores.files.s3 import open_s3
from trainwire.cli.commands.jobs.checkpoints import download

rename = Path.rename
def renamed(self, target):
    with lock:
        number = next(numbers)
        reach(number, "before")
    rename(self, target)
    reach(number, "after")
Path.rename = renamed
is_armed = True
source = CheckpointSource(S3Uri.parse(sys.argv[1]), None, sys.argv[2])
for line in sys.stdin:
    number, moment = line.split()
    at = int(number)
    if os.fork() == 0:
        download(open_s3(), source, Path(sys.argv[3]), force=True, advance=lambda _: None)
        print(next(numbers) - 1, flush=True)
        os._exit(0)
    if status := os.wait()[1]:
        print("killed" if status == signal.SIGKILL else f"ended with status {status}", flush=True)
"""
)
"""Forks for each kill: the imports take most of the time of a new program."""
STEPS_OF_A_DOWNLOAD: Final = 6
"""A manifest, three files, two renames."""


@contextmanager
def downloader(fields: Mapping[str, str], target: Path) -> Iterator[Callable[[int, str], int | None]]:
    """Yield a function that downloads over an existing file.

    It returns the number of requests and renames, None when the process was killed at one.
    """
    with subprocess.Popen(
        [sys.executable, "-c", DOWNLOADER, fields["uri"], fields["sha256"], str(target)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(kill_at: int, moment: str) -> int | None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{kill_at} {moment}\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
            return None if answer == "killed" else int(answer)

        yield run
    assert process.returncode == 0


def test_a_killed_download_is_no_mixture(bucket: Bucket, tmp_path: Path) -> None:
    """After a kill at any request or rename the target is the old folder, the new one, or missing."""
    old, new = {"a": b"old", "z": b"old"}, {"a": b"new", "b": b"new", "c": b"new"}
    fields = bucket.put_folder("c/last/", **new)
    target = tmp_path / "last"
    found = []
    with downloader(fields, target) as run:
        for number in range(1, STEPS_OF_A_DOWNLOAD + 1):
            for moment in ("before", "after"):
                target.mkdir(exist_ok=True)
                for file in target.iterdir():
                    file.unlink()
                for name, data in old.items():
                    (target / name).write_bytes(data)
                assert run(number, moment) is None
                assert not target.exists() or files_of(target) in (old, new)
                found.append(target.exists() and files_of(target) == old)
        assert found == [True] * 9 + [False] * 3
        assert run(0, "never") in {STEPS_OF_A_DOWNLOAD, STEPS_OF_A_DOWNLOAD - 1}
    assert files_of(target) == new
