"""Real commands under the launcher, and their messages in the streams."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainwire.ingest.spool.listing import list_spool

ROOT = Path(__file__).parents[3]


@contextmanager
def launched(
    valkey: Any, *command: str, options: tuple[str, ...] = (), stdin: int | None = None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the launcher with a command, as a shell would."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "trainwire.ingest",
            "--job-id",
            "42",
            "--redis-url",
            valkey.url,
            *options,
            "--",
            *command,
        ],
        stdin=stdin,
        env={**clean, "PYTHONPATH": str(ROOT), "TRAINWIRE_SETTLE_S": "0.1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def launch(
    valkey: Any, *command: str, options: tuple[str, ...] = (), **environment: str
) -> tuple[int, bytes, bytes]:
    """Run the launcher to its end; return its exit code and its output."""
    with launched(valkey, *command, options=options, stdin=None, **environment) as process:
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors


def test_output_is_shown_and_logged(valkey: Any) -> None:
    """Both streams pass through byte by byte and become lines; a partial last line counts."""
    script = "printf 'a\\n\\377b\\r\\n'; printf 'oops\\n' >&2; printf tail"
    code, output, errors = launch(valkey, "sh", "-c", script)
    assert (code, output, errors) == (0, b"a\n\xffb\r\ntail", b"oops\n")
    assert valkey.lines("stdout") == ["a", "\ufffdb", "tail"]
    assert valkey.lines("stderr") == ["oops"]
    (completion,) = valkey.completions()
    assert (completion.status, completion.exit_code, completion.error_message) == ("completed", 0, None)


def test_the_exit_code_is_the_completion(valkey: Any) -> None:
    """A failing command's code is the launcher's, and the last error line is in the message."""
    code, _, _ = launch(valkey, "sh", "-c", "echo hm >&2; echo 'ValueError: boom' >&2; exit 3")
    assert code == 3
    (completion,) = valkey.completions()
    assert (completion.status, completion.exit_code) == ("failed", 3)
    assert completion.error_message == "exit code 3: ValueError: boom"


def test_a_killed_command_gives_128_and_the_signal(valkey: Any) -> None:
    """A command ended by SIGKILL has exit code 137, and the completion has the signal."""
    code, _, _ = launch(valkey, "sh", "-c", "kill -9 $$")
    assert code == 137
    assert valkey.completions()[0].error_message == "killed by signal SIGKILL"


@pytest.mark.parametrize(
    "signum",
    [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2],
)
def test_signals_reach_the_command(valkey: Any, signum: signal.Signals) -> None:
    """The command may answer a signal in its own way, and its answer is the result."""
    script = (
        "import signal, sys, time\n"
        f"signal.signal({int(signum)}, lambda *_: (print('saved'), sys.exit(5)))\n"
        "print('ready')\n"
        "time.sleep(600)\n"
    )
    with launched(valkey, sys.executable, "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signum)
        assert process.wait(120) == 5
    assert valkey.lines("stdout") == ["ready", "saved"]


def test_an_unhandled_signal_is_the_result(valkey: Any, until: Callable[..., None]) -> None:
    """A command that dies of SIGTERM gives 143, and the completion arrives."""
    with launched(valkey, "sh", "-c", "echo ready; exec sleep 600") as process:
        until(lambda: valkey.lines("stdout") == ["ready"])
        process.terminate()
        assert process.wait(120) == 143
    assert valkey.completions()[0].error_message == "killed by signal SIGTERM"


@pytest.mark.parametrize("is_scripted", [False, True])
def test_a_signal_of_the_scheduler_is_a_preemption(
    valkey: Any, until: Callable[..., None], is_scripted: bool
) -> None:
    """In a Slurm job SIGTERM ends the command as ever; launcher and script report that they were pre-empted."""
    command = ("sh", "-c", "echo ready; exec sleep 600")
    if is_scripted:
        script = "import time; from trainwire import Run; run = Run(); print('ready', flush=True); time.sleep(600)"
        command = (sys.executable, "-c", script)
    with launched(valkey, *command, SLURM_JOB_ID="812") as process:
        until(lambda: valkey.lines("stdout") == ["ready"])
        process.terminate()
        assert process.wait(120) == 143
    found = [(each.outcome, each.exit_code, each.error_message) for each in valkey.completions()]
    reason = "SIGTERM in Slurm job 812"
    by_launcher, by_script = ("preempted", 143, reason), ("preempted", None, reason)
    assert sorted(found, key=str) == ([by_launcher, by_script] if is_scripted else [by_launcher])


def test_a_signal_among_the_ranks_is_no_preemption(valkey: Any) -> None:
    """A script that another process of the command terminates has failed: its launcher got no signal."""
    script = (
        "import subprocess, sys\n"
        "rank = 'import time; from trainwire import Run; run = Run(); print(1, flush=True); time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', rank], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); child.terminate(); child.wait(); sys.exit(1)\n"
    )
    code, _, _ = launch(valkey, sys.executable, "-c", script, SLURM_JOB_ID="812")
    assert code == 1
    assert {each.outcome for each in valkey.completions()} == {"failed"}


@pytest.mark.parametrize(
    ("end", "killed"),
    [("os.kill(os.getpid(), 9)", 1), ("", 0), ("sys.exit(3)", 0), ("run.finish(); os.kill(os.getpid(), 9)", 0)],
)
def test_a_script_that_was_killed_is_named(valkey: Any, tmp_path: Path, end: str, killed: int) -> None:
    """The launcher's completion has the sources that have begun and ended without a completion of their own."""
    script = (
        f"import os, sys; from trainwire import Run; run = Run(); open('source', 'w').write(run.source); {end}"
    )
    launch(valkey, "sh", "-c", f"cd {tmp_path}; exec '{sys.executable}' -c \"$0\"", script)
    (named,) = [each.killed for each in valkey.completions() if each.launcher]
    assert (named or []) == [(tmp_path / "source").read_text()] * killed


def test_nohup_still_works(valkey: Any) -> None:
    """A hang-up that was ignored when the launcher started disturbs neither it nor the command."""
    ours = f"{sys.executable} -m trainwire.ingest --job-id 42 --redis-url {valkey.url}"
    script = f"trap '' HUP; {ours} -- sh -c 'kill -HUP $$ $PPID; echo alive'"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRAINWIRE_SETTLE_S": "0.1"}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_an_unknown_command_is_127(valkey: Any) -> None:
    """A command that is not there gives one sentence, 127, and a failed completion."""
    code, _, errors = launch(valkey, "no-such-trainer")
    assert code == 127
    assert errors == (b"trainwire: cannot run 'no-such-trainer': command not found; check its spelling and PATH\n")
    (completion,) = valkey.completions()
    assert completion.status == "failed"
    assert "no-such-trainer" in completion.error_message


def test_a_file_that_is_no_program_is_126(valkey: Any, tmp_path: Path) -> None:
    """A file without the executable bit gives 126."""
    script = tmp_path / "train.py"
    script.write_text("print(1)")
    code, _, errors = launch(valkey, str(script))
    assert code == 126
    assert b"Permission denied" in errors


def test_a_grandchild_with_the_pipe_open_does_not_hang_the_end(valkey: Any) -> None:
    """Background processes of the command do not keep the launcher from ending; a log line reports them."""
    before = time.monotonic()
    code, output, _ = launch(valkey, "sh", "-c", "sleep 200 & echo done")
    assert (code, output) == (0, b"done\n")
    assert time.monotonic() - before < 100
    assert valkey.lines("stdout") == ["done"]
    assert "processes that it started still run" in valkey.lines("stderr")[0]


def test_a_grandchild_may_go_on_to_print(valkey: Any, tmp_path: Path, until: Callable[..., None]) -> None:
    """A background process that still prints when the launcher is gone neither dies of it nor hangs."""
    ended = tmp_path / "ended"
    script = f"(while [ -e /proc/$PPID ]; do sleep 0.1; done; yes | head -c 200000; echo $? > {ended}) & echo done"
    code, _, _ = launch(valkey, "sh", "-c", f"exec sh -c '{script}'")
    assert code == 0
    until(lambda: ended.exists() and ended.read_text() == "0\n")


def test_the_command_is_told_its_job(valkey: Any) -> None:
    """A run in the command joins the job, and its output is not logged twice."""
    script = (
        "from trainwire import Run\n"
        "with Run.from_env() as run:\n"
        "    run.capture_output()\n"
        "    print('hello')\n"
        "    run.metric(epoch=1, loss=0.5)\n"
    )
    code, output, _ = launch(valkey, sys.executable, "-c", script, TRAINWIRE_ATTEMPT="3")
    assert (code, output) == (0, b"hello\n")
    assert valkey.lines("stdout") == ["hello"]
    assert sorted((end.exit_code is None) for end in valkey.completions()) == [False, True]
    points = [point for _, body in valkey.entries("metrics") for point in body.points]
    assert [point.values for point in points] == [{"loss": 0.5}]


def test_endless_output_without_a_newline_is_cut(valkey: Any) -> None:
    """A line of three megabytes is logged in numbered parts, and nothing of it is lost."""
    code, output, _ = launch(valkey, sys.executable, "-c", "print('x' * 3_000_000, end='')")
    assert (code, len(output)) == (0, 3_000_000)
    lines = valkey.lines("stdout")
    assert "".join(line.partition("] ")[2] for line in lines) == "x" * 3_000_000
    assert [line.partition("] ")[0] for line in lines] == [*(f"[part {n}" for n in range(1, 46)), "[part 46, last"]


def test_both_streams_keep_the_order_of_their_lines(valkey: Any, until: Callable[..., None]) -> None:
    """A line that is printed after another, on whichever stream, is logged after it, with its level."""
    script = (
        "import sys\n"
        "for n, _ in enumerate(sys.stdin):\n"
        "    print(f'ERROR:root:{n}', file=(sys.stderr, sys.stdout)[n % 2])\n"
    )
    with launched(valkey, sys.executable, "-c", script, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for count in range(1, 7):
            process.stdin.write(b"go\n")
            process.stdin.flush()
            until(lambda count=count: len(valkey.lines("stdout") + valkey.lines("stderr")) == count)
        process.communicate(timeout=120)
    bodies = [body for _, body in valkey.entries("logs")]
    assert [line for body in bodies for line in body.lines] == [f"ERROR:root:{n}" for n in range(6)]
    assert {level for body in bodies for level in body.levels} == {"ERROR"}


def test_a_character_that_a_read_cuts_is_whole(valkey: Any, until: Callable[..., None]) -> None:
    """Bytes of one character that come in two writes are one character; half a one at the end is replaced."""
    script = "printf 'a\\nb\\303'; read _; printf '\\244\\n\\303'"
    with launched(valkey, "sh", "-c", script, stdin=subprocess.PIPE) as process:
        until(lambda: valkey.lines("stdout") == ["a"])
        process.communicate(b"go\n", timeout=120)
    assert valkey.lines("stdout") == ["a", "b\u00e4", "\ufffd"]


def test_repeats_are_folded_on_request(valkey: Any) -> None:
    """With --fold-repeats equal lines in a row are logged once and counted; all are shown."""
    script = "yes nan | head -n 1000; echo end"
    code, output, _ = launch(valkey, "sh", "-c", script, options=("--fold-repeats",))
    assert (code, output.count(b"nan\n")) == (0, 1000)
    assert valkey.lines("stdout") == ["nan", "trainwire: the last line came 999 more times", "end"]


def test_a_storm_is_thinned_on_request(valkey: Any) -> None:
    """With a limit set, a storm leaves its first lines, a sample and the number of the rest in the log."""
    code, output, _ = launch(valkey, "sh", "-c", "seq 30000", TRAINWIRE_LOG_LINES_PER_S="100")
    assert (code, output.count(b"\n")) == (0, 30_000)
    *lines, notice = valkey.lines("stdout")
    (completion,) = valkey.completions()
    assert lines[:100] == [str(n) for n in range(1, 101)]
    assert len(lines) + completion.dropped["logs"] >= 30_000
    assert "lines left out: more than 100 came within a second" in notice


def test_a_redis_that_never_answers_holds_up_nothing(tmp_path: Path) -> None:
    """Twenty megabytes of output, more than fits the memory, are shown and on the disk at once, all of them."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ours = [sys.executable, "-m", "trainwire.ingest", "--job-id", "42", "--finish-timeout-s", "1"]
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
            "TRAINWIRE_SPOOL_DIR": str(tmp_path),
            "TRAINWIRE_BUFFER_BYTES": "33554432",
        }
        command = ["sh", "-c", f"yes {'x' * 99} | head -c 20000000; touch {tmp_path}/printed"]
        before = time.time()
        done = subprocess.run([*ours, "--", *command], env=env, capture_output=True, check=False, timeout=240)
    assert (done.returncode, len(done.stdout)) == (0, 20_000_000)
    assert (tmp_path / "printed").stat().st_mtime - before < 120
    assert list(tmp_path.glob("42-*/logs-*"))
    assert b"left out" not in done.stderr


REPORTS = "from trainwire import Run; print(Run().finish(timeout_s=60).complete); print('trained'); exit(3)"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("TRAINWIRE_RANK", "abc", "is not a whole number"),
        ("TRAINWIRE_BUFFER_BYTES", "12", "is not a whole number"),
        ("TRAINWIRE_JOB_ID", "abc", "is not a whole number"),
        ("TRAINWIRE_STRICT", "yes", "is not one of off, on"),
        ("TRAINWIRE_PROVENANCE", "-dif", ": 'dif' is not one of"),
    ],
)
def test_a_wrong_setting_does_not_stop_the_training(valkey: Any, name: str, value: str, sentence: str) -> None:
    """It is ignored, also by a run of the script, with one sentence that names the variable."""
    code, output, errors = launch(valkey, sys.executable, "-c", REPORTS, options=(), **{name: value})
    assert (code, output) == (3, b"False\ntrained\n")
    assert re.match(f"trainwire: {name}='?{value}'? ?{sentence}", errors.decode())
    assert errors.splitlines()[0].endswith(b"; it is ignored")
    assert errors.count(name.encode()) == 1
    assert {(end.status, end.exit_code) for end in valkey.completions()} == {("failed", 3), ("completed", None)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "foo"),
        ("STREAMS_URL", "redis+cluster://"),
        ("TRAINWIRE_URL", "htp://host"),
        ("TRAINWIRE_URL", "https://"),
        ("TRAINWIRE_TOKEN", "a b"),
    ],
)
def test_a_wrong_address_does_not_stop_the_training(valkey: Any, tmp_path: Path, name: str, value: str) -> None:
    """Everything that is reported stays in the spool, and is sent to no other server."""
    ours = [sys.executable, "-m", "trainwire.ingest", "--job-id", "42"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")},
        "PYTHONPATH": str(ROOT),
        "TRAINWIRE_SPOOL_DIR": str(tmp_path / "spool"),
        "TRAINWIRE_DATA_DIR": str(tmp_path),
        "REDIS_URL": "" if "TOKEN" in name else valkey.url,
        name: value,
    }
    command = [*ours, "--", sys.executable, "-c", REPORTS]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (3, b"False\ntrained\n")
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"trainwire: {name}".encode())
    assert b"; it is ignored" in first
    spooled = {source.about.job_id: source.messages for source in list_spool(tmp_path / "spool")}
    assert spooled[42]["completions"] == 1
    assert not valkey.completions()


def test_a_wrong_option_does_not_stop_the_training(valkey: Any) -> None:
    """The command and its runs report nothing, and a command that is not there still gives 127."""
    options = ("--redis-url", "foo")
    code, output, errors = launch(valkey, sys.executable, "-c", REPORTS, options=options)
    assert (code, output) == (3, b"False\ntrained\n")
    assert errors.startswith(b"trainwire: redis_url='foo' is not a Redis address")
    assert errors.endswith(b"; the command runs without trainwire\n")
    assert errors.count(b"\n") == 1
    code, _, errors = launch(valkey, "no-such-trainer", options=options)
    assert code == 127
    assert b"redis_url='foo' is not a Redis address" in errors


def test_a_deleted_working_folder_does_not_stop_the_training(valkey: Any, tmp_path: Path) -> None:
    """The command runs in it, and its output is logged."""
    inside = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && exec"
    ours = f"{sys.executable} -m trainwire.ingest --job-id 42 --redis-url {valkey.url} --upload-artifacts"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRAINWIRE_CHECKPOINT_BUCKET": "models"}
    command = f"{inside} {ours} -- echo trained"
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"trained\n")
    assert b"Traceback" not in done.stderr
    assert valkey.lines("stdout") == ["trained"]


def test_a_folder_of_event_files_that_never_appears_is_named(valkey: Any) -> None:
    """It may appear during the training; at the end it is a warning."""
    code, _, errors = launch(valkey, "true", options=("--tensorboard", "/no/such"))
    assert (code, errors.count(b"--tensorboard /no/such is not a folder")) == (0, 1)


def test_a_disabled_training_reports_nothing(valkey: Any) -> None:
    """With TRAINWIRE_DISABLED neither the launcher nor a run sends or writes anything."""
    code, output, errors = launch(valkey, sys.executable, "-c", REPORTS, TRAINWIRE_DISABLED="on", RANK="1")
    assert (code, output, errors) == (3, b"False\ntrained\n", b"")
    assert not valkey.completions()


def test_a_wrong_mode_for_wandb_does_not_stop_the_training(valkey: Any) -> None:
    """A variable is ignored with one sentence; a wrong option is refused, as it was typed."""
    code, output, errors = launch(valkey, "echo", "trained", TRAINWIRE_WANDB="replce")
    assert (code, output) == (0, b"trained\n")
    assert errors == b"trainwire: TRAINWIRE_WANDB='replce' is not one of mirror, replace, off; it is ignored\n"
    code, output, _ = launch(valkey, "echo", "trained", options=("--wandb", "replce"))
    assert (code, output) == (2, b"")


def test_a_rank_of_others_disturbs_nobody(valkey: Any) -> None:
    """A RANK that is no number is named once: the run is reported without a rank."""
    code, output, errors = launch(valkey, "echo", "trained", RANK="x")
    assert (code, output) == (0, b"trained\n")
    assert errors.startswith(b"trainwire: RANK='x' is not a number from 0 to ")
    assert errors.count(b"\n") == 1
    assert valkey.completions()[0].rank is None


def test_arguments_that_cannot_be_right_are_named(valkey: Any) -> None:
    """An attempt of -1 is refused with one sentence before anything runs."""
    process = subprocess.run(
        [sys.executable, "-m", "trainwire.ingest", "--job-id", "42", "--attempt", "-1", "--", "true"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert process.returncode == 2
    assert b"attempt=-1 is not a whole number" in process.stderr
    assert not valkey.completions()


def test_an_unreachable_server_is_one_warning(tmp_path: Path) -> None:
    """The launcher warns of it, and its script does not repeat it; every line of both names trainwire."""
    script = "import trainwire; run = trainwire.Run(); run.metric(loss=0.5); run.finish(timeout_s=1)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")}
    own = {"PYTHONPATH": str(ROOT), "TRAINWIRE_SPOOL_DIR": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1/0"}
    command = [sys.executable, "-m", "trainwire.ingest", "--job-id", "42", "--", sys.executable, "-c", script]
    ended = subprocess.run(
        command, env={**clean, **own}, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("cannot send to") == 1, ended.stderr
    assert all(line.startswith("trainwire: ") for line in ended.stderr.splitlines()), ended.stderr
