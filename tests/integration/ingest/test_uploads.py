"""Checkpoint files on their way into a bucket, over HTTP and over a network that breaks."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import ROOT, wait_until
from tests.s3 import s3_environment, s3_server
from tests.tcp_proxy import TcpProxy
from trainwire import Run, TrainerSettings
from trainwire.ingest.settings.setting_groups import CheckpointSettings
from trainwire.schemas.checkpoint_keys import decode_manifest

MEGABYTE: Final = 1024 * 1024
LARGE: Final = 40 * MEGABYTE
"""Three parts."""
LONG_S: Final = 60.0


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """Return bytes of which no two stretches are alike."""
    return random.Random(seed).randbytes(size_bytes)


def changed(settings: TrainerSettings, **checkpoints: Any) -> TrainerSettings:
    """Return settings with other ones for checkpoints."""
    return replace(settings, checkpoints=replace(settings.checkpoints, **checkpoints))


def composite(data: bytes, part_bytes: int) -> str:
    """Return the checksum of S3 for a multipart object, without the number of parts, which moto leaves out."""
    parts = [data[start : start + part_bytes] for start in range(0, len(data), part_bytes)]
    joined = b"".join(hashlib.sha256(part).digest() for part in parts)
    return base64.b64encode(hashlib.sha256(joined).digest()).decode()


def left_behind(folder: Path) -> list[str]:
    """Return the names of the entries that trainwire has created in a folder."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".trainwire")]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Give a checkpoint of three parts."""
    path = tmp_path / "last.pt"
    path.write_bytes(noise(LARGE))
    return path


def test_a_small_file_is_one_object(valkey: Any, bucket: Any, uploading: TrainerSettings, tmp_path: Path) -> None:
    """Object, row and completion agree, and nothing is left on the trainer's disk."""
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"weights")
    before = time.time_ns()
    with Run(42, settings=uploading) as run:
        run.checkpoint(path, kind="best", epoch=4, metrics={"acc": 0.5})
        after = time.time_ns()
    (row,) = valkey.checkpoints()
    assert re.fullmatch(rf"s3://{bucket.name}/checkpoints/42/3/[^/]+/best-4\.ckpt", row.uri)
    assert (row.size_bytes, row.sha256) == (7, hashlib.sha256(b"weights").hexdigest())
    assert row.store_checksum == base64.b64encode(hashlib.sha256(b"weights").digest()).decode()
    assert (row.upload_error, row.is_best, row.metrics) == (None, True, {"acc": 0.5})
    assert before <= row.ts <= after
    assert bucket.file(row) == b"weights"
    (completion,) = valkey.completions()
    assert completion.best_checkpoint_path == completion.last_checkpoint_path == row.uri
    assert not left_behind(tmp_path)


def test_a_large_file_goes_in_parts(valkey: Any, bucket: Any, uploading: TrainerSettings, large: Path) -> None:
    """The parts are one object, with the checksum S3 gives to an object of parts, and no upload stays open."""
    with Run(42, settings=uploading) as run:
        run.checkpoint(large)
    (row,) = valkey.checkpoints()
    assert (row.upload_error, row.size_bytes) == (None, LARGE)
    assert row.sha256 == hashlib.sha256(noise(LARGE)).hexdigest()
    assert row.store_checksum.removesuffix("-3") == composite(noise(LARGE), 16 * MEGABYTE)
    assert bucket.file(row) == noise(LARGE)
    assert not bucket.unfinished()


def test_a_folder_is_uploaded_as_a_whole(
    valkey: Any, bucket: Any, uploading: TrainerSettings, tmp_path: Path
) -> None:
    """Every file is an object, and the manifest names them all with their sizes and checksums."""
    folder = tmp_path / "sharded"
    (folder / "rank1").mkdir(parents=True)
    contents = {"meta.json": b"{}", "rank1/shard.bin": noise(17 * MEGABYTE), "empty": b""}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    with Run(42, settings=uploading) as run:
        run.checkpoint(folder, kind="epoch", epoch=7)
    (row,) = valkey.checkpoints()
    assert re.fullmatch(rf"s3://{bucket.name}/checkpoints/42/3/[^/]+/epoch-7/", row.uri)
    assert row.upload_error is None
    assert row.size_bytes == sum(map(len, contents.values()))
    manifest = bucket.file(row, "manifest.json")
    assert row.sha256 == hashlib.sha256(manifest).hexdigest()
    assert row.store_checksum == base64.b64encode(hashlib.sha256(manifest).digest()).decode()
    files = {file.path: file for file in decode_manifest(manifest)}
    assert set(files) == set(contents)
    for name, data in contents.items():
        assert (files[name].size_bytes, files[name].sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert bucket.file(row, name) == data
    assert not left_behind(tmp_path)


def test_a_path_that_is_saved_again_has_a_new_object_each_time(
    valkey: Any, bucket: Any, uploading: TrainerSettings, tmp_path: Path
) -> None:
    """Without step and epoch, and with the same ones, no upload touches the objects of the one before."""
    path = tmp_path / "last.pt"
    with Run(42, settings=uploading) as run:
        for number, (epoch, step) in enumerate(((None, None), (None, None), (1, 2), (1, 2))):
            path.write_bytes(b"%d" % number)
            run.checkpoint(path, epoch=epoch, step=step)
            wait_until(lambda: len(valkey.checkpoints()) > number, "the upload", LONG_S)  # noqa: B023 - waited for
    rows = valkey.checkpoints()
    assert [bucket.file(row) for row in rows] == [b"0", b"1", b"2", b"3"]
    assert [row.uri.rpartition("/")[2] for row in rows] == ["last.pt"] * 2 + ["last-1-step2.pt"] * 2


def test_a_folder_that_changes_during_its_upload_costs_only_itself(
    valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, tmp_path: Path
) -> None:
    """A linked file that shrinks is noticed: the row has the reason, and the folder before it stays whole."""
    folder = tmp_path / "last"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(b"first " + name.encode())
    with Run(42, settings=changed(uploading, snapshot="link")) as run:
        run.checkpoint(folder)
        wait_until(lambda: len(valkey.checkpoints()) == 1, "the first upload", LONG_S)
        network.bytes_per_s = 10 * MEGABYTE
        for name in ("a", "b"):
            new = tmp_path / name
            new.write_bytes(noise(10 * MEGABYTE))
            new.replace(folder / name)
        run.checkpoint(folder)
        os.truncate(folder / "b", MEGABYTE)
    first, second = valkey.checkpoints()
    assert "overwritten in place" in second.upload_error
    assert [bucket.file(first, name) for name in ("a", "b")] == [b"first a", b"first b"]
    assert " ".join(bucket.keys()).count("manifest.json") == 1


@pytest.mark.parametrize("replaces", [False, True])
def test_what_is_overwritten_is_uploaded_as_it_was(
    *, valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, large: Path, replaces: bool
) -> None:
    """A trainer that overwrites or replaces last.pt does not change the uploaded checkpoint."""
    network.bytes_per_s = 20 * MEGABYTE
    with Run(42, settings=uploading) as run:
        run.checkpoint(large)
        target = large.with_suffix(".new") if replaces else large
        target.write_bytes(noise(LARGE, seed=2))
        target.replace(large)
    (row,) = valkey.checkpoints()
    assert row.sha256 == hashlib.sha256(noise(LARGE)).hexdigest()
    assert bucket.file(row) == noise(LARGE)


def test_a_linked_file_that_is_overwritten_in_place_is_not_uploaded(
    valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, large: Path
) -> None:
    """With linked snapshots an overwritten file is noticed before the object is complete; the row has it."""
    network.bytes_per_s = 20 * MEGABYTE
    with Run(42, settings=changed(uploading, snapshot="link")) as run:
        run.checkpoint(large)
        large.write_bytes(noise(LARGE, seed=2))
    (row,) = valkey.checkpoints()
    assert (row.uri, row.sha256) == (str(large), None)
    assert "overwritten in place" in row.upload_error
    assert (bucket.keys(), bucket.unfinished()) == ([], [])


def test_a_linked_file_that_is_replaced_is_uploaded_as_it_was(
    valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, large: Path
) -> None:
    """With linked snapshots, os.replace does not change the uploaded bytes."""
    network.bytes_per_s = 20 * MEGABYTE
    with Run(42, settings=changed(uploading, snapshot="link")) as run:
        run.checkpoint(large)
        new = large.with_suffix(".new")
        new.write_bytes(b"other")
        new.replace(large)
    assert bucket.file(valkey.checkpoints()[0]) == noise(LARGE)


def test_a_network_cut_in_the_middle_costs_only_the_parts_in_flight(
    valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, tmp_path: Path
) -> None:
    """An upload continues after a network failure: complete parts are not sent again."""
    size = 120 * MEGABYTE
    path = tmp_path / "epoch.pt"
    path.write_bytes(noise(size))
    network.cut_after_bytes = 100 * MEGABYTE
    with Run(42, settings=uploading) as run:
        run.checkpoint(path, kind="epoch", epoch=1)
        wait_until(lambda: network.is_cut, "the cut", LONG_S)
        network.mend()
    (row,) = valkey.checkpoints()
    assert row.upload_error is None
    assert hashlib.sha256(bucket.file(row)).hexdigest() == row.sha256
    assert row.sha256 == hashlib.sha256(noise(size)).hexdigest()
    assert network.passed_bytes < size + 5 * 16 * MEGABYTE
    assert not bucket.unfinished()


def test_an_outage_that_lasts_is_reported(
    valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, large: Path
) -> None:
    """After retry_s the path is reported with the reason; the next one is tried once, and later all is well."""
    settings = changed(uploading, retry_s=0.5)
    network.cut()
    with Run(42, settings=settings) as run:
        run.checkpoint(large, kind="epoch", epoch=1)
        wait_until(lambda: len(valkey.checkpoints()) == 1, "the report of the first")
        run.checkpoint(large, kind="epoch", epoch=2)
        wait_until(lambda: len(valkey.checkpoints()) == 2, "the report of the second")
        network.mend()
        run.checkpoint(large, kind="epoch", epoch=3)
    first, second, third = valkey.checkpoints()
    assert first.uri == second.uri == str(large)
    assert "tried for 0.5 s" in first.upload_error
    assert third.upload_error is None
    (key,) = bucket.keys()
    assert third.uri == f"s3://{bucket.name}/{key}"


def test_an_end_in_an_outage_says_so(
    valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, large: Path
) -> None:
    """The reason is the unavailable store, not the timeout of finish()."""
    network.cut()
    run = Run(42, settings=uploading)
    run.checkpoint(large)
    run.finish(timeout_s=5)
    (row,) = valkey.checkpoints()
    assert (row.uri, row.upload_error) == (
        str(large),
        "the object store was unavailable when the run ended: upload the file by hand",
    )
    assert not bucket.keys()


def test_a_given_up_upload_leaves_no_parts(
    valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, large: Path
) -> None:
    """An upload abandoned at the end of the run is aborted in the store, and reported before the completion."""
    network.bytes_per_s = 2 * MEGABYTE
    run = Run(42, settings=uploading)
    run.checkpoint(large)
    wait_until(bucket.unfinished, "the first part", LONG_S)
    run.finish(timeout_s=2)
    (row,) = valkey.checkpoints()
    assert row.uri == str(large)
    assert "the run ended before it was uploaded" in row.upload_error
    (completion,) = valkey.completions()
    assert completion.produced["checkpoints"] == 1
    assert completion.last_checkpoint_path == str(large)
    network.bytes_per_s = None
    wait_until(lambda: not bucket.unfinished(), "the abort", LONG_S)


def test_checkpoints_are_reported_in_the_order_they_were_said(
    *, valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, large: Path, tmp_path: Path
) -> None:
    """One that needs no upload waits for the one before it; a last that a newer one replaces is not sent."""
    network.bytes_per_s = 20 * MEGABYTE
    small = tmp_path / "small.pt"
    with Run(42, settings=uploading) as run:
        run.checkpoint(large, kind="epoch", epoch=1)
        run.checkpoint("s3://elsewhere/mine.pt", kind="mine")
        for round_ in (b"1", b"2"):
            small.write_bytes(round_)
            run.checkpoint(small)
        run.checkpoint(large, kind="local", upload="none")
    rows = valkey.checkpoints()
    assert [row.kind for row in rows] == ["epoch", "mine", "last", "last", "local"]
    assert rows[1].uri == "s3://elsewhere/mine.pt"
    assert (rows[2].uri, rows[2].upload_error) == (str(small), "a newer one came before it was uploaded")
    assert (rows[4].uri, rows[4].upload_error) == (str(large), None)
    assert bucket.file(rows[3]) == b"2"
    assert len(bucket.keys()) == 2


def test_a_wrong_key_is_reported_at_once(
    valkey: Any, settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that refuses the credentials is not asked again, and the training goes on."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"weights")
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as url:
        for name, value in s3_environment(url).items():
            monkeypatch.setenv(name, value)
        with Run(42, settings=replace(settings, checkpoints=CheckpointSettings(bucket="tests"))) as run:
            run.checkpoint(path)
    (row,) = valkey.checkpoints()
    assert row.uri == str(path)
    assert "403 InvalidAccessKeyId" in row.upload_error
    assert "check the bucket's name, the credentials" in row.upload_error
    assert not left_behind(tmp_path)


@pytest.mark.usefixtures("bucket")
def test_a_missing_bucket_is_reported_at_once(valkey: Any, uploading: TrainerSettings, large: Path) -> None:
    """The row names the bucket that is not there."""
    with Run(42, settings=changed(uploading, bucket="nowhere")) as run:
        run.checkpoint(large)
    (row,) = valkey.checkpoints()
    assert re.match(r"s3://nowhere/checkpoints/42/3/[^/]+/last\.pt: 404 NoSuchBucket", row.upload_error)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of eight megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("spare", "reason"), [(2, "needs 2 x 6291456 bytes free"), (0, "No space left")])
def test_a_full_disk_stops_nothing(
    *,
    valkey: Any,
    bucket: Any,
    uploading: TrainerSettings,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    spare: int,
    reason: str,
) -> None:
    """Without room for a snapshot the path is reported; nothing of it stays on the disk."""
    monkeypatch.setattr("trainwire.ingest.uploads.snapshots.SPARE_COPIES", spare)
    path = small_disk / "last.pt"
    path.write_bytes(noise(6 * MEGABYTE))
    with Run(42, settings=uploading) as run:
        run.checkpoint(path)
        run.log("the training goes on")
        assert not [
            file for file in small_disk.rglob("*") if file.name not in {"last.pt", "lock"} and file.is_file()
        ]
    (row,) = valkey.checkpoints()
    assert (row.uri, row.size_bytes) == (str(path), 6 * MEGABYTE)
    assert reason in row.upload_error
    assert valkey.lines("stdout") == ["the training goes on"]
    assert not bucket.keys()
    assert not left_behind(small_disk)


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Give a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        taken = []

        def accept() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for one in taken:
            one.close()


def test_a_store_that_never_answers_holds_nobody(
    valkey: Any, settings: TrainerSettings, silent_url: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """finish keeps its deadline, and the path and the completion arrive."""
    for name, value in s3_environment(silent_url).items():
        monkeypatch.setenv(name, value)
    run = Run(42, settings=replace(settings, checkpoints=CheckpointSettings(bucket="tests")))
    run.checkpoint(large)
    before = time.monotonic()
    receipt = run.finish(timeout_s=2)
    assert time.monotonic() - before < 20
    assert (receipt.sent["checkpoints"], receipt.sent["completions"]) == (1, 1)
    assert "the run ended" in valkey.checkpoints()[0].upload_error
    assert not left_behind(large.parent)


TRAINER: Final = """
import signal, sys
from trainwire import Run
Run(42).checkpoint(sys.argv[1])
"""


def trainer(valkey: Any, url: str, script: str, path: Path, **env: str) -> subprocess.Popen[str]:
    """Start a script as a trainer that uploads."""
    where = {"REDIS_URL": valkey.url, "TRAINWIRE_CHECKPOINT_BUCKET": "tests", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", TRAINER + script, str(path)],
        env=os.environ | s3_environment(url) | where | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interpreter_ends_though_the_store_never_answers(valkey: Any, silent_url: str, large: Path) -> None:
    """A script that just ends is held for the stated time, and reports."""
    process = trainer(valkey, silent_url, "", large, TRAINWIRE_CHECKPOINT_FINISH_S="1", TRAINWIRE_SETTLE_S="0.1")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "is not uploaded: the run ended before" in errors
    assert "the run ended" in valkey.checkpoints()[0].upload_error
    assert len(valkey.completions()) == 1


def test_an_impatient_user_still_gets_the_completion(valkey: Any, silent_url: str, large: Path) -> None:
    """Ctrl-C while the end waits for an upload ends the wait, not the report."""
    ends = "print('said', flush=True); import atexit; atexit.register(print, 'ending', flush=True)"
    process = trainer(valkey, silent_url, ends, large, TRAINWIRE_SETTLE_S="0.1")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["said\n", "ending\n"]
    time.sleep(1)  # until it is in the middle of the wait
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert "the run ended" in valkey.checkpoints()[0].upload_error
    assert len(valkey.completions()) == 1


@pytest.mark.usefixtures("bucket")
def test_what_a_killed_trainer_left_is_removed_by_the_next(
    valkey: Any, uploading: TrainerSettings, silent_url: str, large: Path
) -> None:
    """A snapshot whose process is gone goes with the next checkpoint; that of a living process stays."""
    waits = "print('said', flush=True); signal.pause()"
    killed, living = (trainer(valkey, silent_url, waits, large) for _ in range(2))
    try:
        for process in (killed, living):
            assert process.stdout is not None
            assert process.stdout.readline() == "said\n"
        assert len(left_behind(large.parent)) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        with Run(42, settings=uploading) as run:
            run.checkpoint(large)
        assert len(left_behind(large.parent)) == 1
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()


def test_a_forked_child_uploads_nothing_and_does_not_hang(
    valkey: Any, bucket: Any, network: TcpProxy, uploading: TrainerSettings, large: Path
) -> None:
    """A child forked in mid-upload ends at once; its own checkpoint is a path, and the parent's arrives."""
    network.bytes_per_s = 20 * MEGABYTE
    with Run(42, settings=uploading) as run:
        run.checkpoint(large)
        child = os.fork()
        if child == 0:
            run.checkpoint(large, kind="child")
            run.finish(timeout_s=200)
            os._exit(0)
        before = time.monotonic()
        assert os.waitpid(child, 0)[1] == 0
        assert time.monotonic() - before < 60
    rows = {row.kind: row for row in valkey.checkpoints()}
    assert rows["child"].uri == str(large)
    assert "forked process" in rows["child"].upload_error
    assert rows["last"].upload_error is None
    assert bucket.file(rows["last"]) == noise(LARGE)
    assert not left_behind(large.parent)


def test_an_unknown_attempt_never_shares_keys(
    valkey: Any, bucket: Any, uploading: TrainerSettings, tmp_path: Path
) -> None:
    """Two runs that do not know their attempt store under their sources, side by side."""
    path = tmp_path / "last.pt"
    sources = []
    for data in (b"first", b"second"):
        path.write_bytes(data)
        with Run(42, settings=replace(uploading, attempt=0)) as run:
            run.checkpoint(path)
            sources.append(run.source)
    rows = valkey.checkpoints()
    assert [row.uri.split("/")[5] for row in rows] == [f"source-{source}" for source in sources]
    assert [bucket.file(row) for row in rows] == [b"first", b"second"]


def test_upload_none_only_records(valkey: Any, bucket: Any, uploading: TrainerSettings, large: Path) -> None:
    """With this setting no file is uploaded or copied, unless a call asks for it."""
    with Run(42, settings=changed(uploading, upload="none")) as run:
        run.checkpoint(large)
        run.checkpoint(large, kind="best", upload="auto")
    recorded, uploaded = valkey.checkpoints()
    assert (recorded.uri, recorded.sha256, recorded.upload_error) == (str(large), None, None)
    assert re.fullmatch(rf"s3://{bucket.name}/checkpoints/42/3/[^/]+/best\.pt", uploaded.uri)


def test_a_missing_boto3_is_named(valkey: Any, silent_url: str, large: Path, tmp_path: Path) -> None:
    """With a bucket and without boto3 the path is recorded, and one warning has the package to install."""
    hide = tmp_path / "sitecustomize.py"
    hide.write_text(
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'boto3' else find(name, package)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = trainer(valkey, silent_url, "", large, PYTHONPATH=path, TRAINWIRE_SETTLE_S="0.1")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert errors.count("pip install 'trainwire[s3]'") == 1
    assert "pip install 'trainwire[s3]'" in valkey.checkpoints()[0].upload_error
