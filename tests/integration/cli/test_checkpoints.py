"""`trainwire checkpoints`, `status` and `retention` on real rows and a real S3 server."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, SECOND_NS, Sender, checkpoint, completion, drain
from tests.integration.cli.conftest import Trainwire
from tests.integration.conftest import Bucket
from trainwire.schemas.checkpoint_keys import ManifestFile, encode_manifest
from trainwire.stack.persisted_config import free_port
from trainwire.stores.files.s3 import open_s3
from trainwire.workers.checkpoints.verification import Verification
from trainwire.workers.resources import Resources

Record = Callable[..., None]
WEIGHTS = bytes(range(256)) * 10_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def record(resources: Resources, sender: Sender, bucket: Bucket) -> Record:
    """Give a function that stores checkpoints of job 42 and has them verified."""

    def record(*all_fields: dict[str, Any], attempt: int = 1) -> None:
        for fields in all_fields:
            sender.send(checkpoint(**{"kind": "last"} | fields), job=42, attempt=attempt)
        drain(resources, "checkpoints", 42)
        Verification(resources.engine, open_s3, [f"s3://{bucket.name}/"], slice_s=0).run()

    return record


def test_each_file_has_its_state(connected: Trainwire, record: Record, bucket: Bucket) -> None:
    """Each file is verified, missing, different, overwritten, not uploaded or only recorded, with the reason."""
    missing = bucket.put("c/gone.pt")
    bucket.delete("c/gone.pt")
    record(
        bucket.put("c/last.pt", b"1"),
        bucket.put("c/last.pt", b"2") | {"is_best": True, "epoch": 7, "step": 70},
        missing,
        bucket.put("c/cut.pt") | {"size_bytes": 1},
        {"uri": "/out/x.pt", "upload_error": "S3 was \x1b[31maway"},
        {"uri": "out/y.pt"},
        attempt=1,
    )
    record({"uri": "out/z.pt"}, attempt=2)
    listed = json.loads(connected("checkpoints", "42", "--json").out)
    assert [row["state"] for row in listed] == [
        "overwritten",
        "verified",
        "missing",
        "different",
        "not uploaded",
        "recorded",
        "recorded",
    ]
    shown = connected("checkpoints", "42").out
    assert f"missing: {missing['uri']} is not there" in shown
    assert "different: " in shown
    assert "not uploaded: S3 was away" in shown
    assert "\x1b" not in shown
    assert len(connected("checkpoints", "42", "--attempt", "2").out.splitlines()) == 2
    with_best = next(line for line in shown.splitlines() if "best" in line and "7" in line)
    assert "verified" in with_best


def test_status_counts_damaged_checkpoints(connected: Trainwire, record: Record, bucket: Bucket) -> None:
    """`status` counts missing, different and not uploaded files, and has no such line if there are none."""
    record(bucket.put("c/a.pt"))
    fine = connected("status", "42")
    assert (fine.err, json.loads(connected("status", "42", "--json").out)["checkpoint_problems"]) == ("", [])
    record({"uri": f"s3://{bucket.name}/never.pt"}, {"uri": "/out/x.pt", "upload_error": "disk full"})
    said = connected("status", "42").err
    assert "checkpoints: 1 missing, 1 not uploaded; the newest: disk full; see `trainwire checkpoints 42`" in said
    problems = json.loads(connected("status", "42", "--json").out)["checkpoint_problems"]
    assert [problem["seq"] for problem in problems] == [2, 3]
    # The next one under the same key makes up for it; another kind does not.
    record(bucket.put("c/best.pt") | {"kind": "best"})
    assert "1 not uploaded" in connected("status", "42").err
    record(bucket.put("c/last.pt"))
    assert "checkpoints: 1 missing; the newest" in connected("status", "42").err


def test_a_lent_address_gives_the_file_until_it_expires(
    connected: Trainwire, record: Record, bucket: Bucket
) -> None:
    """`--url` prints a signed URL that anyone can download from for the requested time."""
    record(bucket.put("c/best.pt", WEIGHTS) | {"kind": "best"})
    printed = connected("checkpoints", "42", "--url", "best", "--expires", "60").out.strip()
    assert "X-Amz-Expires=60&" in printed
    with urllib.request.urlopen(printed, timeout=60) as answer:
        assert answer.read() == WEIGHTS
    assert connected("checkpoints", "42", "--url", "last").err.startswith(
        "trainwire: job 42 has no last checkpoint"
    )


def test_a_download_is_whole_and_in_place(
    connected: Trainwire, record: Record, bucket: Bucket, folder: Path
) -> None:
    """A file is found by `best`, `last` or number, saved to a chosen name or folder, without temporary files."""
    record(bucket.put("c/best.pt", WEIGHTS) | {"kind": "best"}, bucket.put("c/last.pt", b"last"))
    assert connected("checkpoints", "42", "--download", "best").out == "best.pt: downloaded, SHA-256 as recorded\n"
    connected("checkpoints", "42", "--download", "last", "--to", "mine.pt")
    (folder / "there").mkdir()
    connected("checkpoints", "42", "--download", "1", "--to", "there")
    assert (folder / "best.pt").read_bytes() == (folder / "there" / "best.pt").read_bytes() == WEIGHTS
    assert (folder / "mine.pt").read_bytes() == b"last"
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "mine.pt", "there"]


def test_a_download_replaces_nothing_unless_forced(
    connected: Trainwire, record: Record, bucket: Bucket, folder: Path
) -> None:
    """An existing file stays, with the two remedies in the error; `--force` replaces it."""
    record(bucket.put("c/last.pt", WEIGHTS))
    (folder / "last.pt").write_text("mine")
    refused = connected("checkpoints", "42", "--download", "last")
    assert (refused.code, (folder / "last.pt").read_text()) == (1, "mine")
    assert "last.pt exists already: choose another name with --to, or replace it with --force" in refused.err
    assert connected("checkpoints", "42", "--download", "last", "--force").code == 0
    assert (folder / "last.pt").read_bytes() == WEIGHTS


def test_an_object_unlike_its_record_is_not_kept(
    connected: Trainwire, record: Record, bucket: Bucket, folder: Path
) -> None:
    """An object that was replaced by one of the same size is refused, and the old file stays."""
    record(bucket.put("c/last.pt", b"right"))
    bucket.put("c/last.pt", b"wrong")
    (folder / "last.pt").write_text("mine")
    refused = connected("checkpoints", "42", "--download", "last", "--force")
    assert refused.code == 1
    assert "c/last.pt is not what the trainer uploaded: its SHA-256 is " in refused.err
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("last.pt", "mine")]


def test_a_file_without_a_recorded_digest_is_unproven(
    connected: Trainwire, record: Record, bucket: Bucket, folder: Path
) -> None:
    """Without a SHA-256 the file is downloaded with a warning; a recorded size is still checked."""
    fields = bucket.put("c/last.pt", b"right")
    record({"uri": fields["uri"]})
    done = connected("checkpoints", "42", "--download", "last")
    assert (done.code, done.out) == (0, "last.pt: downloaded\n")
    assert "recorded no SHA-256" in done.err
    record({"uri": fields["uri"], "size_bytes": 4})
    assert "has 5 bytes, recorded are 4" in connected("checkpoints", "42", "--download", "2", "--force").err
    assert (folder / "last.pt").read_bytes() == b"right"


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("1", "checkpoint 1 was overwritten by 2: ask for that one"),
        ("2", "c/last.pt is not there: it was deleted, or never uploaded to this store"),
        ("3", "/out/x.pt is on the trainer's machine: it was not uploaded: disk full"),
        ("4", "out/y.pt was only recorded, not uploaded: fetch it from where it is"),
        ("9", "job 42 has no checkpoint 9: see `trainwire checkpoints 42`"),
        ("best", "job 42 has no best checkpoint that can be used"),
        ("newest", "'newest' is no checkpoint: use best, last, or a number of the list"),
    ],
)
def test_a_failed_download_has_its_reason(
    connected: Trainwire, record: Record, bucket: Bucket, which: str, said: str
) -> None:
    """Each reason has an error of its own, and no file is left."""
    files = [bucket.put("c/last.pt", content) for content in (b"1", b"2")]
    record(*files, {"uri": "/out/x.pt", "upload_error": "disk full"}, {"uri": "out/y.pt"})
    bucket.delete("c/last.pt")
    refused = connected("checkpoints", "42", "--download", which)
    assert (refused.code, list(Path().iterdir())) == (1, [])
    assert said in refused.err


@pytest.mark.parametrize("how", ["--download", "--url"])
def test_without_credentials_the_variables_are_named(
    connected: Trainwire, record: Record, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """No credentials in the environment: an error with the settings."""
    record(bucket.put("c/last.pt"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused = connected("checkpoints", "42", how, "last")
    assert refused.code == 1
    assert "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refused.err


def test_a_store_that_refuses_or_is_down_is_one_sentence(
    connected: Trainwire, record: Record, bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """403 and no answer at all end without a traceback and without a file."""
    record(bucket.put("c/last.pt"))
    bucket.forbid("c/", "s3:GetObject")
    refused = connected("checkpoints", "42", "--download", "last")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    away = connected("checkpoints", "42", "--download", "last")
    assert (refused.code, away.code, list(folder.iterdir())) == (1, 1, [])
    assert "S3 answered 403" in refused.err
    assert "check the credentials, what they allow, and the region" in refused.err
    assert "Could not connect to the endpoint URL" in away.err


class HalfAnswer(BaseHTTPRequestHandler):
    """Sends half of the announced bytes, then ends."""

    def do_GET(self) -> None:
        """Answer any GET."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(WEIGHTS)))
        self.end_headers()
        self.wfile.write(WEIGHTS[: len(WEIGHTS) // 2])

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_a_connection_that_breaks_leaves_nothing(
    connected: Trainwire, record: Record, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that is cut in the middle is one sentence and no file; the next one succeeds."""
    record(bucket.put("c/last.pt", WEIGHTS))
    with HTTPServer(("127.0.0.1", 0), HalfAnswer) as server, monkeypatch.context() as cut:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        cut.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        broken = connected("checkpoints", "42", "--download", "last")
        thread.join(60)
    assert (broken.code, list(Path().iterdir())) == (1, [])
    assert f"cannot download s3://{bucket.name}/c/last.pt: S3: " in broken.err
    assert connected("checkpoints", "42", "--download", "last").code == 0


def test_a_folder_comes_as_a_whole(connected: Trainwire, record: Record, bucket: Bucket, folder: Path) -> None:
    """All files of the manifest are downloaded and verified; `--force` replaces a folder; it has no signed URL."""
    files = {"rank0.bin": b"0", "deep/er/rank1.bin": WEIGHTS}
    record(bucket.put_folder("c/last/", **files))
    assert connected("checkpoints", "42", "--download", "last").code == 0
    (folder / "old").mkdir()
    (folder / "last" / "stale").write_text("x")
    assert connected("checkpoints", "42", "--download", "last", "--to", ".").code == 1
    assert connected("checkpoints", "42", "--download", "last", "--to", ".", "--force").code == 0
    found = {str(path.relative_to("last")): path.read_bytes() for path in Path("last").rglob("*.bin")}
    assert (found, sorted(path.name for path in folder.iterdir())) == (files, ["last", "old"])
    assert not (folder / "last" / "stale").exists()
    assert "is a folder, which has no URL of its own" in connected("checkpoints", "42", "--url", "last").err


def test_a_folder_with_a_damaged_file_is_not_kept(
    connected: Trainwire, record: Record, bucket: Bucket, folder: Path
) -> None:
    """If one file differs from its record, no part of the folder is left."""
    record(bucket.put_folder("c/last/", a=b"right", b=b"right"))
    bucket.put("c/last/b", b"wrong")
    refused = connected("checkpoints", "42", "--download", "last")
    assert (refused.code, list(folder.iterdir())) == (1, [])
    assert "c/last/b is not what the trainer uploaded" in refused.err


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_a_hostile_folder_writes_nothing(
    connected: Trainwire, record: Record, bucket: Bucket, folder: Path, path: str
) -> None:
    """A manifest with a path outside the folder is refused before anything is written."""
    manifest = encode_manifest([ManifestFile(path=path, size_bytes=1, sha256="0")])
    record(bucket.put("c/last/manifest.json", manifest) | {"uri": f"s3://{bucket.name}/c/last/"})
    refused = connected("checkpoints", "42", "--download", "1")
    assert refused.code == 1
    assert "which does not lie in the folder" in refused.err
    assert list(folder.iterdir()) == []
    assert not (folder.parent / "escaped").exists()


def test_a_hostile_name_is_not_a_way_out(
    connected: Trainwire, record: Record, bucket: Bucket, folder: Path
) -> None:
    """A key that ends with dots does not write to the parent folder, not even with --force."""
    (folder / "work").mkdir()
    record({"uri": f"s3://{bucket.name}/c/.."})
    refused = connected("checkpoints", "42", "--download", "last", "--force")
    assert refused.code == 1
    assert [path.name for path in folder.iterdir()] == ["work"]


def test_a_folder_that_cannot_be_written_is_reported(connected: Trainwire, record: Record, bucket: Bucket) -> None:
    """A missing target folder is named with the reason."""
    record(bucket.put("c/last.pt"))
    refused = connected("checkpoints", "42", "--download", "last", "--to", "nowhere/last.pt")
    assert refused.err == "trainwire: cannot write nowhere/last.pt: No such file or directory\n"


def test_a_bar_is_drawn_only_on_a_terminal(
    connected: Trainwire, record: Record, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe stderr stays empty; on a terminal it shows the file's name."""
    record(bucket.put("c/last.pt", WEIGHTS))
    assert connected("checkpoints", "42", "--download", "last").err == ""
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _self: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "last.pt" in connected("checkpoints", "42", "--download", "last", "--force").err


def test_a_job_without_checkpoints(connected: Trainwire, resources: Resources, sender: Sender) -> None:
    """A job without checkpoints is reported as such, an unknown one as unknown."""
    sender.send(completion(), job=42)
    drain(resources, "completions", 42)
    assert connected("checkpoints", "42").out == "no checkpoints of job 42 yet\n"
    assert json.loads(connected("checkpoints", "42", "--json").out) == []
    assert "no job 43" in connected("checkpoints", "43").err


def test_retention_lists_surplus_checkpoints(
    *,
    connected: Trainwire,
    resources: Resources,
    sender: Sender,
    record: Record,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`trainwire retention` names the surplus of finished jobs and the rule, and deletes nothing."""
    assert "TRAINWIRE_CHECKPOINT_BUCKET is not set" in connected("retention").err
    monkeypatch.setenv("TRAINWIRE_CHECKPOINT_BUCKET", bucket.name)
    monkeypatch.setenv("CHECKPOINT_KEEP_LAST", "1")
    monkeypatch.setenv("CHECKPOINT_RETENTION", "dry-run")
    record(*(bucket.put(f"checkpoints/42/1/epoch-{number}.pt", WEIGHTS) for number in (1, 2)))
    assert "would delete 0 checkpoints" in connected("retention").out
    sender.send(completion(ts=NOW_NS + SECOND_NS), job=42)
    drain(resources, "completions", 42)
    shown = connected("retention").out
    assert "checkpoints/42/1/epoch-1.pt" in shown
    assert "CHECKPOINT_RETENTION=dry-run here: nothing is deleted" in shown
    assert "if on, the next run would delete 1 checkpoints (2.56 MB)" in shown
    assert "CHECKPOINT_REMOVE_SUPERSEDED=on here: the next run deletes 0 superseded uploads (0 B)" in shown
    monkeypatch.setenv("CHECKPOINT_RETENTION", "on")
    assert "CHECKPOINT_RETENTION=on here: the next run deletes 1 checkpoints" in connected("retention").out
    listed = json.loads(connected("retention", "--json").out)
    assert [(row["seq"], row["rule"]) for row in listed] == [(1, "surplus")]
    assert bucket.has("checkpoints/42/1/epoch-1.pt")
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_checkpoints SET deleted_at = now() WHERE seq = 1"))
    assert "was deleted by retention at 20" in connected("checkpoints", "42", "--url", "1").err
    assert json.loads(connected("checkpoints", "42", "--json").out)[0]["state"] == "deleted"
