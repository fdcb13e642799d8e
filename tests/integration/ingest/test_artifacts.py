"""Files that a training logs with MLflow, under `trainwire run --upload-artifacts`, on their way into a bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT, wait_until
from tests.s3 import s3_environment
from trainwire.schemas.checkpoint_keys import decode_manifest

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet", "TRAINWIRE_PROVENANCE": "off"}


def start(valkey: Any, script: str, folder: Path, *options: str, **environ: str) -> subprocess.Popen[str]:
    """Start a script under the launcher, in a folder of its own."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TRAINWIRE_") and name != "MLFLOW_TRACKING_URI"
    }
    spool = {"TRAINWIRE_SPOOL_DIR": str(folder.parent / "spool"), "REDIS_URL": valkey.url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trainwire", "run", "--job-id", "42", *options, "--"]
    return subprocess.Popen(
        [*command, sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=folder,
        env={**clean, **QUIET, **spool, "TRAINWIRE_SETTLE_S": "0.1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(valkey: Any, script: str, folder: Path, *options: str, **environ: str) -> str:
    """Run a script to its end; return its output."""
    process = start(valkey, script, folder, *options, **environ)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the working folder of the training."""
    path = tmp_path / "training"
    path.mkdir()
    return path


FILES = """
import pathlib, shutil
import mlflow
from mlflow.models import Model
pathlib.Path("notes ü %41?.txt").write_text("first")
pathlib.Path("many/inner").mkdir(parents=True)
pathlib.Path("many/a b.bin").write_bytes(bytes(range(256)))
pathlib.Path("many/inner/empty").write_bytes(b"")
with mlflow.start_run(run_name="main"):
    mlflow.log_artifact("notes ü %41?.txt")
    mlflow.log_artifact("notes ü %41?.txt", "sub/deep")
    mlflow.log_text("hello", "plots/a.txt")
    mlflow.log_dict({"a": 1}, "plots/b.json")
    mlflow.log_artifacts("many", "folder")
    with mlflow.start_run(run_name="fold", nested=True):
        mlflow.log_text("inner", "a.txt")

        class Twice(mlflow.pyfunc.PythonModel):
            def predict(self, model_input: list[int]) -> list[int]:
                return [2 * each for each in model_input]

        mlflow.pyfunc.log_model(name="twice", python_model=Twice(), pip_requirements=[])
shutil.rmtree("mlruns")
"""


def test_logged_files_and_models_are_checkpoints(valkey: Any, bucket: Any, folder: Path) -> None:
    """Each file, folder and model is in the bucket with its name, although `mlruns` is deleted at the end."""
    upload = {"TRAINWIRE_CHECKPOINT_BUCKET": bucket.name}
    train(valkey, FILES, folder, "--upload-artifacts", **upload)
    rows = {row.kind: row for row in valkey.checkpoints()}
    models = [kind for kind in rows if kind.startswith("model:fold/twice/m-")]
    files = {
        "artifact:notes ü %41?.txt": b"first",
        "artifact:sub/deep/notes ü %41?.txt": b"first",
        "artifact:plots/a.txt": b"hello",
        "artifact:fold/a.txt": b"inner",
    }
    assert set(rows) == {*files, *models, "artifact:plots/b.json", "artifact:folder"}
    assert not [row.upload_error for row in rows.values() if row.upload_error]
    assert {kind: bucket.file(rows[kind]) for kind in files} == files
    assert rows["artifact:plots/a.txt"].uri.endswith("/a.txt")
    parts = {each.path: each for each in decode_manifest(bucket.file(rows["artifact:folder"], "manifest.json"))}
    assert set(parts) == {"a b.bin", "inner/empty"}
    assert bucket.file(rows["artifact:folder"], "a b.bin") == bytes(range(256))
    assert b"python_model" in bucket.file(rows[models[0]], "MLmodel")
    (completion,) = valkey.completions()
    assert completion.last_checkpoint_path == rows[models[0]].uri
    assert f"uploaded: {len(rows)} files" in valkey.lines("stderr")[-1]
    assert not list(folder.glob(".trainwire*"))


AGAIN = """
import pathlib, time
import mlflow
with mlflow.start_run():
    for number in range(5):
        pathlib.Path("state").mkdir(exist_ok=True)
        pathlib.Path("state/now.txt").write_text(str(number))
        mlflow.log_artifacts("state", "state")
        mlflow.log_text(str(number), "now.txt")
    path = mlflow.artifacts.download_artifacts(artifact_path="now.txt", run_id=mlflow.active_run().info.run_id)
    assert pathlib.Path(path).read_text() == "4"
pathlib.Path("state/now.txt").write_text("later")
"""


def test_a_file_that_is_logged_again_is_uploaded_with_its_last_content(
    valkey: Any, bucket: Any, folder: Path
) -> None:
    """Every uploaded object has the content of one call; the newest row has that of the last call."""
    train(valkey, AGAIN, folder, "--upload-artifacts", TRAINWIRE_CHECKPOINT_BUCKET=bucket.name)
    for kind, name in (("artifact:now.txt", ""), ("artifact:state", "now.txt")):
        rows = [row for row in valkey.checkpoints() if row.kind == kind]
        assert len(rows) == 5
        contents = [None if row.upload_error else bucket.file(row, name).decode() for row in rows]
        assert contents[-1] == "4"
        assert all(content in {None, str(number)} for number, content in enumerate(contents))
        assert {row.upload_error for row in rows} <= {None, "a newer one came before it was uploaded"}


ONE = """
import os
import mlflow
with mlflow.start_run():
    mlflow.log_text("hello", "a.txt")
    mlflow.log_metric("loss", 0.5, step=1)
print("trained", os.getpid())
"""


def test_without_a_bucket_one_sentence_names_the_variable(valkey: Any, folder: Path) -> None:
    """The files stay in `mlruns`, as without the option."""
    output = train(valkey, ONE, folder, "--upload-artifacts")
    notes = [line for line in output.splitlines() if "--upload-artifacts" in line]
    assert len(notes) == 1
    assert "set TRAINWIRE_CHECKPOINT_BUCKET" in notes[0]
    assert "trained" in output
    assert not valkey.checkpoints()
    assert any("file recorded: " in line for line in valkey.lines("stdout"))


def test_without_the_option_nothing_is_uploaded(valkey: Any, bucket: Any, folder: Path) -> None:
    """A bucket alone does not upload what MLflow logs."""
    train(valkey, ONE, folder, TRAINWIRE_CHECKPOINT_BUCKET=bucket.name)
    assert not valkey.checkpoints()
    assert not bucket.keys()


def test_a_store_that_refuses_or_is_away_does_not_hurt_the_training(
    valkey: Any, bucket: Any, folder: Path
) -> None:
    """The exit code and the metrics are the training's; the row has the reason, and the summary counts it."""
    output = train(
        valkey, ONE, folder, "--upload-artifacts",
        TRAINWIRE_CHECKPOINT_BUCKET=f"{bucket.name}-none", TRAINWIRE_CHECKPOINT_RETRY_S="1",
    )  # fmt: skip
    assert "trained" in output
    (row,) = valkey.checkpoints()
    assert row.uri.startswith(f"{folder}/mlruns/0/")
    assert "NoSuchBucket" in row.upload_error
    assert "caught 1 value of 1 metric from mlflow; not uploaded: 1 file (" in valkey.lines("stderr")[-1]


def test_ctrl_c_ends_the_wait_for_uploads(valkey: Any, bucket: Any, folder: Path) -> None:
    """Once the command has ended, a signal ends the launcher, with the command's exit code."""
    dead = {**s3_environment("http://127.0.0.1:9"), "TRAINWIRE_CHECKPOINT_BUCKET": bucket.name}
    process = start(valkey, ONE, folder, "--upload-artifacts", **dead)
    assert process.stdout is not None
    command = next(line.split()[1] for line in process.stdout if line.startswith("trained "))
    # Not its end alone: the kernel drops a signal for a command that is just ending.
    wait_until(lambda: command not in children(process.pid), "the launcher's notice of the end", 60)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    (row,) = valkey.checkpoints()
    assert row.upload_error is not None


def children(pid: int) -> list[str]:
    """Return the processes that a launcher has started and not yet waited for."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_too_many_files_are_recorded_with_the_reason(valkey: Any, bucket: Any, folder: Path) -> None:
    """A folder of more than 10,000 files is not uploaded."""
    (folder / "many").mkdir()
    for number in range(10_001):
        (folder / "many" / str(number)).touch()
    script = "import mlflow\nwith mlflow.start_run():\n    mlflow.log_artifacts('many', 'many')\n"
    train(valkey, script, folder, "--upload-artifacts", TRAINWIRE_CHECKPOINT_BUCKET=bucket.name)
    (row,) = valkey.checkpoints()
    assert "10,001 files" in row.upload_error
    assert not bucket.keys()
