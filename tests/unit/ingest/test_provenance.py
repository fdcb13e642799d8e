"""What is recorded of a run's command, code and machine, and what never is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ingest.conftest import Told
from trainwire import TrainerSettings
from trainwire.ingest.identity import open_runs
from trainwire.ingest.provenance import collector, recording
from trainwire.ingest.provenance.recording import Recorder, collected, interpreter_of
from trainwire.schemas.wire.messages import PROVENANCE_ITEMS

SECRET = "hunter2hunter2"
ADDRESS = f"https://me:{SECRET}@example.com/r.git"


def git(folder: Path, *arguments: str) -> None:
    """Run git in a folder, as somebody."""
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a repository with one commit and a change since."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "work")
    (folder / "train.py").write_text("lr = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    git(folder, "remote", "add", "origin", ADDRESS)
    (folder / "train.py").write_text(f"lr = 2\nAPI_KEY = '{SECRET}'\n")
    monkeypatch.chdir(folder)
    return folder


def ask(*items: str, **request: Any) -> dict[str, Any]:
    """Return the collector's answer, from this process."""
    return collector.collect(
        {"items": items, "command": ["train"], "folder": str(Path.cwd()), "sys_path": None} | request
    )


def test_all_items_are_collected(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program answers with each item that this machine has, in bounds, and without any secret."""
    for name, value in {
        "SLURM_JOB_ID": "812",
        "WANDB_API_KEY": SECRET,
        "OMP_NUM_THREADS": "2",
        "TF_VAR_address": "of Terraform",
        "TRAINWIRE_CONTAINER_IMAGE": f"https://me:{SECRET}@registry/image:1",
    }.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "train.py", "--api-key", SECRET, f"--password={SECRET}", ADDRESS]
    found = collected(PROVENANCE_ITEMS, command)
    assert set(PROVENANCE_ITEMS) - {"gpu"} <= set(found)
    assert found["command"][1:] == [
        "train.py",
        "--api-key",
        "***",
        "--password=***",
        "https://me:***@example.com/r.git",
    ]
    assert found["folder"] == str(repository)
    assert (found["git"]["branch"], found["git"]["changed_files"], len(found["git"]["commit"])) == ("work", 1, 40)
    assert found["git"]["remote"] == "https://me:***@example.com/r.git"
    assert "+lr = 2\n+API_KEY = '***'\n" in found["diff"]
    assert found["python"]["executable"] == sys.executable
    assert found["packages"]["msgspec"]
    assert found["scheduler"]["SLURM_JOB_ID"] == "812"
    assert (found["variables"]["WANDB_API_KEY"], found["variables"]["OMP_NUM_THREADS"]) == ("***", "2")
    assert "TF_VAR_address" not in found["variables"]
    assert found["container"]["image"] == "https://me:***@registry/image:1"
    assert SECRET not in json.dumps(found)


def test_each_item_can_be_left_out() -> None:
    """TRAINWIRE_PROVENANCE names the items that are recorded, or those that are not; a wrong one is named."""
    of = {
        text: TrainerSettings.from_env({"TRAINWIRE_PROVENANCE": text}).provenance
        for text in ("all", "off", "-diff")
    }
    assert of == {"all": {*PROVENANCE_ITEMS}, "off": set(), "-diff": {*PROVENANCE_ITEMS} - {"diff"}}
    assert TrainerSettings.from_env({"TRAINWIRE_PROVENANCE": "git, command"}).provenance == {"git", "command"}
    with pytest.raises(ValueError, match="'gti' is not one of command, folder"):
        TrainerSettings.from_env({"TRAINWIRE_PROVENANCE": "gti"})
    assert list(collected(["user"], None)) == ["user"]


def test_git_takes_no_locks_and_runs_no_program_of_the_repository(repository: Path, tmp_path: Path) -> None:
    """A lock of another git is left alone, and neither an external diff nor a monitor is started."""
    marker = tmp_path / "ran"
    (repository / ".git" / "index.lock").touch()
    for name in ("core.fsmonitor", "diff.external"):
        git(repository, "config", name, f"touch {marker}; true")
    assert ask("git")["git"]["changed_files"] == 1
    assert "+lr = 2" in ask("diff")["diff"]
    assert (repository / ".git" / "index.lock").exists()
    assert not marker.exists()


def test_a_large_diff_is_cut(repository: Path) -> None:
    """A diff is recorded up to its limit, and states that it was cut."""
    (repository / "train.py").write_text("x" * 60 + "\n" * 200_000)
    diff = ask("diff")["diff"]
    assert len(diff) < collector.MAX_DIFF_BYTES + 100
    assert diff.endswith(f"\n... cut after {collector.MAX_DIFF_BYTES:,} bytes\n")


@pytest.mark.parametrize(("program", "item"), [("git", "git"), ("nvidia-smi", "gpu")])
def test_a_program_that_hangs_is_given_up(
    program: str, item: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git and nvidia-smi are killed after their time; the other items are there."""
    (tmp_path / program).write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(collector, "GIT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(collector, "GPU_TIMEOUT_S", 0.2)
    began = time.monotonic()
    assert list(ask("user", item)) == ["user"]
    assert time.monotonic() - began < 30


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, driver and memory of each GPU; nothing where the program fails."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf 'NVIDIA H100, 550.54, 81559 MiB\\nNVIDIA H100, 550.54, 81559 MiB\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert ask("gpu")["gpu"] == 2 * [{"name": "NVIDIA H100", "driver": "550.54", "memory": "81559 MiB"}]
    program.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert ask("gpu") == {}


def test_the_python_of_a_command(tmp_path: Path) -> None:
    """A command's packages are those of its Python: itself, or that of a script's first line."""
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f"#!{sys.executable}\nprint(1)\n")
    torchrun.chmod(0o755)
    assert interpreter_of([sys.executable, "train.py"]) == sys.executable
    assert interpreter_of([str(torchrun), "train.py"]) == sys.executable
    torchrun.write_text(f"#!{sys.executable} -u\nprint(1)\n")
    assert interpreter_of([str(torchrun), "train.py"]) == sys.executable
    torchrun.write_text("#!/usr/bin/env -S python3 -u\nprint(1)\n")
    assert interpreter_of([str(torchrun), "train.py"]) == shutil.which("python3")
    assert interpreter_of(["sh", "run.sh"]) is None
    assert interpreter_of(["no-such-program"]) is None


def test_a_run_sends_its_provenance_once(tell: Callable[..., Told]) -> None:
    """Rank 0 sends the items as one message beside its others; other ranks and runs of code settings send none."""
    settings = TrainerSettings(redis_url="redis://127.0.0.1:1/0", provenance=frozenset({"user", "command"}))
    told = tell(settings=settings)
    told.run.finish(timeout_s=8)
    (sent,) = [body.provenance for body in told.bodies("metrics") if body.provenance]
    assert (sorted(sent), sent["command"][0]) == (["command", "user"], sys.orig_argv[0])
    for quiet in (tell(settings=settings, rank=1), tell()):
        quiet.run.finish(timeout_s=0)
        assert [body.provenance for body in quiet.bodies("metrics") if body.provenance] == []


def test_a_process_collects_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a loop share one collection."""
    asked: list[object] = []

    def collect(*given: object) -> dict[str, Any]:
        asked.append(given)
        return {"user": "me"}

    monkeypatch.setattr("trainwire.ingest.provenance.recording.collected", collect)
    recorder, answers = Recorder(), list[dict[str, Any]]()
    for _ in range(5):
        assert recorder.record(frozenset({"user"}), answers.append).wait(20)
    assert (len(asked), answers) == (1, 5 * [{"user": "me"}])


def test_the_environment_is_as_before_once_runs_have_ended(
    tell: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While runs are open, child processes find the newest's number; afterwards the variable is as it was."""
    import os  # noqa: PLC0415 - only here

    monkeypatch.setattr(open_runs.open_runs, "_open", {})
    monkeypatch.setenv("TRAINWIRE_JOB_ID", "7")
    first, second = tell(job_id=8).run, tell(job_id=9).run
    assert os.environ["TRAINWIRE_JOB_ID"] == "9"
    first.finish(timeout_s=0)
    assert os.environ["TRAINWIRE_PARENT_RUN"].startswith("9:")
    second.finish(timeout_s=0)
    assert os.environ["TRAINWIRE_JOB_ID"] == "7"
    assert "TRAINWIRE_PARENT_RUN" not in os.environ


def test_the_collector_is_read_from_a_descriptor_above_1023(high_descriptor: int) -> None:
    """A training may have thousands of open files when its run begins."""
    read, written = os.pipe()
    os.dup2(read, high_descriptor)
    os.write(written, b"{}")
    os.close(written)
    assert recording._read(high_descriptor) == b"{}"
    os.close(high_descriptor)
    os.close(read)
