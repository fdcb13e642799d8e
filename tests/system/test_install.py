"""The wheel in environments of its own, in a project with modules that have the names of our folders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.processes import ROOT, wait_until
from trainwire.schemas.keys import stream_key

OURS = ("schemas", "stores", "ingest", "workers", "client", "gateway", "cli", "stack")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
SCRIPT = """
import sys
from trainwire import Run
with Run(job_id=42, redis_url=sys.argv[1]) as run:
    run.log("from a bare install")
    run.metric(epoch=1, loss=0.5)
    run.checkpoint(sys.executable)
heavy = {"sqlalchemy", "celery", "kombu", "pydantic", "mlflow", "alembic", "typer", "boto3"} & set(sys.modules)
assert not heavy, heavy
"""
TRAINING = """
import schemas, stores, ingest, workers, client, gateway, cli, stack
from trainwire import Run
with Run.from_env() as run:
    run.metric(loss=sum(module.MINE for module in (schemas, stores, ingest, workers, client, gateway, cli, stack)))
"""
READY = "Ctrl-C stops it."
SWEEP_DEADLINE_S = 180


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a project folder with modules and packages that are named like our folders."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in OURS:
        path = (
            folder / name / "__init__.py"
            if name in {"schemas", "ingest", "cli", "stack"}
            else folder / f"{name}.py"
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text("MINE = 1\n")
    (folder / "train.py").write_text(TRAINING)
    return folder


def test_the_wheel_has_one_package(wheel: Path) -> None:
    """All files are below `trainwire`, with the page, the migrations and the type marker."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"trainwire"}
    assert {f"trainwire/{name}/__init__.py" for name in OURS} <= set(names)
    packed = {
        "gateway/page/index.html",
        "schemas/migrations/env.py",
        "schemas/migrations/script.py.mako",
        "py.typed",
    }
    assert {f"trainwire/{name}" for name in packed} <= set(names)


def test_the_small_set_is_enough(
    wheel: Path, project: Path, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    """With the base dependencies only, a run publishes, and `trainwire` names the missing extra."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), *PIP[1:]]
    subprocess.run([*pip, "install", "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True, cwd=tmp_path)
    installed = run_command(*pip, "list", "--format=freeze", env=os.environ, cwd=tmp_path).stdout.lower()
    assert not [
        name
        for name in ("sqlalchemy", "celery", "kombu", "packaging", "pydantic", "typer")
        if f"{name}==" in installed
    ]

    done = run_command(python, "-c", SCRIPT, redis_url, env=os.environ, cwd=project)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert [client.xlen(stream_key(kind, 2)) for kind in ("logs", "completions", "checkpoints")] == [1, 1, 1]

    launcher = [str(python), "-m", "trainwire.ingest", "--job-id", "43", "--", "echo", "no SDK"]
    for env in environments(REDIS_URL=redis_url):
        done = run_command(*launcher, env=env, cwd=project)
        assert (done.returncode, done.stdout) == (0, "no SDK\n"), done.stderr
    assert client.xlen(stream_key("logs", 3)) == 2

    refused = run_command(tmp_path / "venv" / "bin" / "trainwire", "jobs", env=os.environ, cwd=project)
    assert refused.returncode == 2
    assert "pip install 'trainwire[worker]'" in refused.stderr


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """Create an environment with the wheel and the packages of this one, without the editable trainwire."""
    venv.create(tmp_path / "venv")
    folder = tmp_path / "venv" / "bin"
    subprocess.run([*PIP, "--python", folder / "python", "install", "--no-deps", wheel], check=True, cwd=tmp_path)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (site / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a .pth file in there is not read
    return folder


@pytest.mark.parametrize("python_path", ["", "."], ids=["plain", "PYTHONPATH=."])
def test_a_project_may_use_our_names(installed: Path, project: Path, python_path: str, tmp_path: Path) -> None:
    """Stack, launcher, SDK and workers run in the project, and the training imports its own modules."""
    state = {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_STATE_HOME": str(tmp_path / "state")}
    env = {name: value for name, value in os.environ.items() if not name.endswith(("_URL", "_DIR"))} | state
    env |= {"PYTHONPATH": python_path} if python_path else {}
    python, trainwire = installed / "python", installed / "trainwire"
    where = run_command(
        python, "-c", "import trainwire.workers as w; print(w.__file__)", env=env, cwd=project
    ).stdout
    assert where.startswith(str(installed.parent))
    with stack_running([trainwire, "up", "--no-flower", "--concurrency", "1"], env, project):
        for job, code in (("1", ["train.py"]), ("2", ["-c", "print('no SDK')"])):
            done = run_command(trainwire, "run", "--job-id", job, "--", python, *code, env=env, cwd=project)
            assert done.returncode == 0, done.stderr
        exports = dict(
            re.findall(r"export (\w+)=(\S+)", run_command(trainwire, "env", env=env, cwd=project).stdout)
        )
        swept = run_command(python, "-m", "trainwire.workers", "sweep", env=env | exports, cwd=project)
        assert swept.returncode == 0, swept.stderr
        for job in ("1", "2"):
            wait_until(
                lambda job=job: "complete:" in run_command(trainwire, "status", job, env=env, cwd=project).stdout,  # type: ignore[misc]
                f"job {job} is stored",
                SWEEP_DEADLINE_S,
            )
        assert run_command(trainwire, "metrics", "1", env=env, cwd=project).stdout.split()[-2:] == [
            "learning_rate",
            str(len(OURS)),
        ]


def environments(**more: str) -> Iterator[dict[str, str]]:
    """Yield the environment of this process without PYTHONPATH, and with the current folder in it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    yield env
    yield env | {"PYTHONPATH": "."}


def run_command(
    *command: str | Path, env: dict[str, str] | os._Environ[str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command and wait for its end."""
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=180)


@contextmanager
def stack_running(command: list[str | Path], env: dict[str, str], project: Path) -> Iterator[None]:
    """Run `trainwire up` until the block ends."""
    output = project.parent / "up.txt"
    with output.open("wb") as file:
        up = subprocess.Popen(command, env=env, cwd=project, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: READY in output.read_text() or up.poll() is not None, "the stack", 240)
        assert up.poll() is None, output.read_text()
        yield
    finally:
        up.terminate()
        assert up.wait(120) == 0, output.read_text()
