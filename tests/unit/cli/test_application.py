"""The command line as a whole: missing packages are reported, and only necessary modules are imported."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainwire.__main__ import main
from trainwire.cli.application import COMMANDS


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def _without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _python(
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['trainwire', *{list(arguments)!r}]; "
        "from trainwire.__main__ import main; main()"
    )


def test_without_typer_the_sentence_names_the_extra() -> None:
    """In an installation without Typer, each command prints the extra to install."""
    for command, hint in {
        "run": "[cli]', or use `python -m trainwire.ingest`",
        "spool": "[cli]'",
        "jobs": "[worker]'",
        "mcp": "[mcp]'",
        "up": "[embedded]'",
        "demo": "[embedded]'",
        "--help": "[cli]'",
    }.items():
        done = _without("typer", command)
        assert done.returncode == 2
        assert done.stderr == f"trainwire: typer is not installed: pip install 'trainwire{hint}\n"


def test_without_a_database_driver_the_help_still_works() -> None:
    """A command whose packages are missing reports them; the other commands work."""
    assert "Not installed" in _without("sqlalchemy", "--help").stdout
    done = _without("sqlalchemy", "status", "1", "--json")
    assert done.returncode == 2
    assert done.stderr == "trainwire: sqlalchemy is not installed: pip install 'trainwire[worker]'\n"


def test_the_server_for_agents_needs_its_extra_alone() -> None:
    """`trainwire mcp` names its extra; over a gateway it needs no database driver."""
    done = _without("mcp", "mcp")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "trainwire: mcp is not installed: pip install 'trainwire[mcp]'\n"
    assert "Model Context Protocol" in _without("sqlalchemy", "mcp", "--help").stdout


def test_run_imports_nothing_of_the_database() -> None:
    """`trainwire run` runs beside a training, so it loads neither SQLAlchemy nor Celery."""
    done = _python(
        "import sys; from trainwire.cli.application import build; build(['run']); "
        "print([name for name in ('sqlalchemy', 'celery', 'psycopg', 'psutil') if name in sys.modules])"
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_version_needs_no_command() -> None:
    """`trainwire --version` imports no module of a command, and so nothing of Postgres."""
    done = _python(
        "import sys; from trainwire.cli.application import build; build(['--version']); "
        "print([name for name in sys.modules if name.startswith(('trainwire.cli.commands.', 'sqlalchemy'))])"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("package", ["typer", "sqlalchemy"])
def test_ctrl_c_during_the_imports_is_quiet(package: str) -> None:
    """An interrupt during the imports of `trainwire up` prints no traceback."""
    done = _python(
        f"""
import sys
from pathlib import Path
class CtrlC:
    def find_spec(self, name, *_):
        if name == {package!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC())
sys.argv = ["trainwire", "up"]
from trainwire.__main__ import main
main()
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`trainwire --version` needs no command and exits 0."""
    monkeypatch.setattr(sys, "argv", ["trainwire", "--version"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert capsys.readouterr() == (f"trainwire {importlib.metadata.version('trainwire')}\n", "")


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`trainwire --help` lists all commands."""
    monkeypatch.setattr(sys, "argv", ["trainwire", "--help"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in shown] == []


@pytest.mark.parametrize(
    "command",
    [
        "run --job-id",
        "token create --name me --role trainer --job",
    ],
)
@pytest.mark.parametrize("job", ["abc", "0", "1.5", "9223372036854775808"])
def test_a_job_that_is_no_number_is_named(
    command: str, job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error for a job that is not a number has the given text and the allowed range."""
    monkeypatch.setattr(sys, "argv", ["trainwire", *command.split(), job])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert f"{job!r} is not the number of a job: a whole number from 1 to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "wrong", "allowed"),
    [
        ("jobs --limit", ["0", "-1", "abc", "99999999999999999999"], "a whole number from 1 to 10000000"),
        ("logs 1 --limit", ["-1", "1.5", "nan"], "a whole number from 0 to 10000000"),
        ("metrics 1 --limit", ["0", ""], "a whole number from 1 to 10000000"),
        ("mlflow 1 --limit", ["0"], "a whole number from 1 to 10000000"),
        ("mlflow 1 --attempt", ["0.5", "2147483648"], "a whole number from -2147483647 to 2147483647"),
        ("deliveries --limit", ["0"], "a whole number from 1 to 10000000"),
        ("replay 1 --sink loki --from", ["0", "first"], "a whole number from 1 to 9223372036854775807"),
        ("checkpoints 1 --expires", ["0", "1h"], "a whole number from 1 to 604800"),
        ("dead-letters show", ["0", "x", "9223372036854775808"], "the number of a dead letter: a whole number"),
        ("dead-letters discard 1", ["0", "x"], "the number of a dead letter: a whole number"),
        ("token create --name me --role viewer --days", ["0", "x"], "a whole number from 1 to 36500"),
        ("token revoke", ["0", "x"], "the number of a token: a whole number from 1 to"),
        ("up --concurrency", ["0", "x"], "a whole number from 1 to 1024"),
        ("run --job-id 1 --attempt", ["-1", "x"], "a whole number from 0 to 2147483647"),
        ("run --job-id 1 --finish-timeout-s", ["-1", "nan", "x"], "a number of seconds from 0 to 86400"),
        ("top --every", ["0", "nan", "inf", "x"], "a number of seconds from 0.5 to 3600"),
        ("spool send --timeout", ["0", "-1", "x"], "a number of seconds from 1 to 86400"),
    ],
)
def test_a_number_that_cannot_be_is_named(
    command: str,
    wrong: list[str],
    allowed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error has the given value and the allowed ones; nothing was changed."""
    for value in wrong:
        monkeypatch.setattr(sys, "argv", ["trainwire", *command.split(), value])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        assert f"{value!r} is not {allowed}" in capsys.readouterr().err


def test_a_data_folder_that_cannot_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`trainwire up` in a place without write access prints one error with the path and the option."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "data"
    monkeypatch.setattr(sys, "argv", ["trainwire", "up", "--data-dir", str(folder)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    said = f"trainwire: {folder} cannot be a data folder: Not a directory; choose another with --data-dir\n"
    assert capsys.readouterr().err == said


def test_a_reader_that_has_ended_causes_no_error() -> None:
    """`trainwire ... | head` prints nothing on stderr after `head` has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "trainwire", "--version"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
