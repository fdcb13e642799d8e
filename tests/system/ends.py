"""The ways in which a training's process can end: the table of docs/ends.md."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Final, NamedTuple

HEAD: Final = (
    "import os, signal, sys, threading, time\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it in background jobs\n"
    "from trainwire import Run\n"
    "def term(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.05)\n"
    "def wait_beat():  # a job without a heartbeat does not become lost\n"
    "    while not run._session._heartbeat.is_known: time.sleep(0.01)\n"
)
RUN: Final = "run = Run(job_id=int(sys.argv[1]))\nrun.log('last words')\n"
BLOCK: Final = "with Run(job_id=int(sys.argv[1])) as run:\n    run.log('last words')\n    "
SHELL: Final = (
    "from IPython.core.interactiveshell import InteractiveShell\ncell = InteractiveShell.instance().run_cell\n"
)


class End(NamedTuple):
    """A script, and the expected status of its job without a launcher that knows the exit code.

    `exit_code` is that of the process, negative for a signal; `known_code` is that of the job. `then` are the
    lines that it logs after `last words`. `command` precedes the interpreter.
    """

    script: str
    exit_code: int
    status: str
    known_code: int | None = None
    error: str | None = None
    then: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    @property
    def shell_code(self) -> int:
        """The exit code as a shell reports it."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code

    @property
    def launched_status(self) -> str:
        """The status of the job under a launcher, which knows the exit code."""
        if self.status == "preempted":
            return self.status
        return "failed" if self.exit_code else "completed"


def _terminated(script: str) -> End:
    return End(script, -15, "failed", 143, "terminated by SIGTERM")


def _goes_on(script: str) -> End:
    """Return a training that SIGTERM does not end."""
    return End(script + "run.log('goes on')\n", 0, "completed", then=("goes on",))


RETURNS: Final = {
    "the block ends": End(BLOCK + "pass", 0, "completed"),
    "the script ends": End(RUN, 0, "completed"),
    "a thread is waited for": End(
        HEAD + "def work():\n    time.sleep(0.3); run.log('last words')\nrun = Run(job_id=int(sys.argv[1]))\n"
        "threading.Thread(target=work).start()",
        0,
        "completed",
    ),
    "a daemon thread goes on logging": End(
        RUN + "def talk():\n    while True: run.log('more'); time.sleep(0.001)\n"
        "threading.Thread(target=talk, daemon=True).start(); time.sleep(0.1)",
        0,
        "completed",
    ),
    "`finish` with an exit code, then a return": End(RUN + "run.finish(exit_code=5)", 0, "failed", 5),
}
EXCEPTIONS: Final = {
    "an exception in the block": End(BLOCK + "raise ValueError('boom')", 1, "failed", None, "ValueError: boom"),
    "an exception": End(RUN + "raise ValueError('boom')", 1, "failed", None, "ValueError: boom"),
    "an exception that leaves the block and is caught": End(
        "try:\n    with Run(job_id=int(sys.argv[1])) as run:\n        run.log('last words')\n        1 / 0\n"
        "except ZeroDivisionError: pass",
        0,
        "failed",
        None,
        "ZeroDivisionError: division by zero",
    ),
    "an exception in a thread": End(
        RUN + "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()", 0, "completed"
    ),
    "ctrl-C in the block": End(
        BLOCK + "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -2, "failed", None, "KeyboardInterrupt"
    ),
    "ctrl-C": End(
        RUN + "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
        -2,
        "failed",
        None,
        "KeyboardInterrupt",
    ),
    "an error at a prompt in between (`code.interact`)": End(
        RUN + "import code\nlines = iter(['1 / 0'])\ndef read(prompt):\n"
        "    for line in lines: return line\n    raise EOFError\ncode.interact(readfunc=read)",
        0,
        "completed",
    ),
}
EXITS: Final = {
    "`sys.exit(3)` in the block": End(BLOCK + "sys.exit(3)", 3, "failed", 3, "exit code 3"),
    "`sys.exit(3)`": End(RUN + "sys.exit(3)", 3, "failed", 3, "exit code 3"),
    "`sys.exit('no data')`": End(RUN + "sys.exit('no data')", 1, "failed", 1, "no data"),
    "`sys.exit(0)`": End(RUN + "sys.exit(0)", 0, "completed", 0),
    "`sys.exit(main())`": End(RUN + "def main(): return 4\nsys.exit(main())", 4, "failed", 4, "exit code 4"),
    "`sys.exit(3)` in an excepthook": End(
        RUN + "sys.excepthook = lambda *_: sys.exit(3)\n1 / 0", 3, "failed", 3, "exit code 3"
    ),
    "`exit(3)`": End(RUN + "exit(3)", 3, "failed", 3, "exit code 3"),
    "`quit(3)`": End(RUN + "quit(3)", 3, "failed", 3, "exit code 3"),
    "`raise SystemExit(main())` with 3": End(RUN + "def main(): return 3\nraise SystemExit(main())", 3, "ended"),
    "`raise SystemExit(main())` with 0": End(RUN + "def main(): return 0\nraise SystemExit(main())", 0, "ended"),
    "`raise SystemExit(3)` in the block": End(BLOCK + "raise SystemExit(3)", 3, "failed", 3, "exit code 3"),
    "`from sys import exit` before the run": End("from sys import exit\n" + RUN + "exit(3)", 3, "ended"),
    "`sys.exit` that is caught (argparse)": End(
        RUN + "import argparse\ntry: argparse.ArgumentParser().parse_args(['--nope'])\nexcept SystemExit: pass",
        0,
        "completed",
    ),
    "`sys.exit` that is caught (runpy)": End(
        RUN + "import runpy\nopen(sys.argv[1] + '.x.py', 'w').write('import sys; sys.exit(2)')\n"
        "try: runpy.run_path(sys.argv[1] + '.x.py', run_name='__main__')\nexcept SystemExit: pass",
        0,
        "completed",
    ),
    "`sys.exit` that is caught, then `raise SystemExit(0)`": End(
        RUN + "try: sys.exit(2)\nexcept SystemExit: pass\nraise SystemExit(0)", 0, "ended"
    ),
    "`sys.exit` in a thread": End(
        RUN + "thread = threading.Thread(target=sys.exit, args=(3,)); thread.start(); thread.join()",
        0,
        "completed",
    ),
    "`os._exit(4)`": End(RUN + "wait_beat(); os._exit(4)", 4, "lost"),
    "`os.execv`": End(
        RUN + "wait_beat(); os.execv(sys.executable, [sys.executable, '-c', 'raise SystemExit(5)'])", 5, "lost"
    ),
}
SIGNALS: Final = {
    "SIGTERM in the block": _terminated(BLOCK + "term(); time.sleep(9)"),
    "SIGTERM": _terminated(RUN + "term(); time.sleep(9)"),
    "SIGTERM, with two runs": _terminated(
        RUN + "other = Run(job_id=int(sys.argv[1]) + 1000, rank=0)\nterm(); time.sleep(9)"
    ),
    "SIGTERM, a handler of before that sets a flag": _goes_on(
        "signal.signal(signal.SIGTERM, lambda *_: None)\n" + RUN + "term()\n"
    ),
    "SIGTERM, a handler of before that exits": End(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n" + RUN + "term(); time.sleep(9)",
        143,
        "failed",
        143,
        "exit code 143",
    ),
    "SIGTERM, ignored before": _goes_on("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + RUN + "term()\n"),
    "SIGTERM, ignored later": _goes_on(RUN + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nterm()\n"),
    "SIGTERM, a later handler that sets a flag": _goes_on(
        RUN + "signal.signal(signal.SIGTERM, lambda *_: None)\nterm()\n"
    ),
    "SIGTERM, a later handler that calls the one it found": _goes_on(
        RUN + "def handler(*args): callable(found) and found(*args)\n"
        "found = signal.signal(signal.SIGTERM, handler)\nterm()\n"
    ),
    "SIGTERM, a later handler that restores the one it found and sends it again": _terminated(
        RUN + "def handler(*_): signal.signal(signal.SIGTERM, found); term()\n"
        "found = signal.signal(signal.SIGTERM, handler)\nterm(); time.sleep(9)"
    ),
    "SIGTERM, after a handler was installed and removed again": _terminated(
        RUN + "found = signal.signal(signal.SIGTERM, lambda *_: None); signal.signal(signal.SIGTERM, found)\n"
        "term(); time.sleep(9)"
    ),
    "SIGTERM, a later handler that finishes the run and exits with 0": End(
        RUN + "def handler(*_): run.finish('failed', error='pre-empted'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, handler); term(); time.sleep(9)",
        0,
        "failed",
        None,
        "pre-empted",
    ),
    "SIGTERM, a later handler that calls `finish('preempted')` and exits with 85": End(
        RUN + "def handler(*_): run.finish('preempted', error='saved'); sys.exit(85)\n"
        "signal.signal(signal.SIGTERM, handler); term(); time.sleep(9)",
        85,
        "preempted",
        None,
        "saved",
    ),
    "SIGTERM, `loop.add_signal_handler`": _goes_on(
        RUN + "import asyncio\nasync def main():\n    asked = asyncio.Event()\n"
        "    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)\n"
        "    term(); await asked.wait()\n"
        "asyncio.run(main())\n"
    ),
    "SIGTERM, a thread in `sigwait`": _goes_on(
        RUN + "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "thread = threading.Thread(target=signal.sigwait, args=({signal.SIGTERM},)); thread.start()\n"
        "term(); thread.join()\n"
    ),
    "SIGTERM, faulthandler of before": _goes_on(
        "import faulthandler; faulthandler.register(signal.SIGTERM)\n" + RUN + "term()\n"
    ),
    "SIGTERM, a run made in a thread": End(
        "def work():\n    global run\n    run = Run(job_id=int(sys.argv[1])); run.log('last words'); wait_beat()\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join(); term()",
        -15,
        "lost",
    ),
    "SIGTERM as process 1": _goes_on(RUN + "term()\n")._replace(command=("unshare", "--pid", "--fork")),
    "SIGINT, a handler of the training": End(
        RUN + "signal.signal(signal.SIGINT, lambda *_: run.log('goes on'))\nos.kill(os.getpid(), signal.SIGINT)",
        0,
        "completed",
        then=("goes on",),
    ),
    "SIGHUP": End(RUN + "wait_beat(); os.kill(os.getpid(), signal.SIGHUP); time.sleep(9)", -1, "lost"),
    "SIGUSR1": End(RUN + "wait_beat(); os.kill(os.getpid(), signal.SIGUSR1); time.sleep(9)", -10, "lost"),
    "SIGXCPU": End(RUN + "wait_beat(); os.kill(os.getpid(), signal.SIGXCPU); time.sleep(9)", -24, "lost"),
    "SIGKILL": End(RUN + "wait_beat(); os.kill(os.getpid(), signal.SIGKILL)", -9, "lost"),
}
CHILDREN: Final = {
    "a forked child gets SIGTERM": End(
        RUN + "child = os.fork()\nif child == 0: time.sleep(30); os._exit(0)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "run.log('child ' + str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))",
        0,
        "completed",
        then=("child -15",),
    ),
    "a forked child calls `sys.exit(3)`": End(
        RUN + "child = os.fork()\nif child == 0: run.log('child'); sys.exit(3)\n"
        "os.waitpid(child, 0)\nrun.log('parent')",
        0,
        "completed",
        then=("child", "parent"),
    ),
    "a multiprocessing child (fork) has the run, and raises": End(
        "import multiprocessing\ndef train():\n"
        + "    run = Run(job_id=int(sys.argv[1])); run.log('last words'); 1 / 0\n"
        "child = multiprocessing.get_context('fork').Process(target=train); child.start(); child.join()",
        0,
        "failed",
        None,
        "ZeroDivisionError: division by zero",
    ),
    "a multiprocessing child (fork) has the run, and returns": End(
        "import multiprocessing\ndef train():\n"
        + "    run = Run(job_id=int(sys.argv[1])); run.log('last words')\n"
        "child = multiprocessing.get_context('fork').Process(target=train); child.start(); child.join()",
        0,
        "completed",
    ),
    "a multiprocessing child (spawn) has the run, and exits with 3": End(
        "import multiprocessing\ndef train():\n"
        "    run = Run(job_id=int(sys.argv[1])); run.log('last words'); sys.exit(3)\nif __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=train); child.start(); child.join()",
        0,
        "failed",
        3,
        "exit code 3",
    ),
}
KERNELS: Final = {
    "a kernel is shut down, its last cell raised": End(
        SHELL + RUN + "cell('1'); cell('1 / 0')", 0, "ended", None, "ZeroDivisionError: division by zero"
    ),
    "a kernel is shut down, a cell before the last raised": End(
        SHELL + RUN + "cell('1 / 0'); cell('1')", 0, "completed"
    ),
}
ENDS: Final[Mapping[str, Mapping[str, End]]] = {
    "Returns": RETURNS,
    "Exceptions": EXCEPTIONS,
    "Exits": EXITS,
    "Signals": SIGNALS,
    "Children": CHILDREN,
    "Notebooks": KERNELS,
}


def tables() -> str:
    """Return the tables of docs/ends.md."""
    return "\n".join(line for group, ends in ENDS.items() for line in _table(group, ends))


def _table(group: str, ends: Mapping[str, End]) -> Iterator[str]:
    yield f"## {group}\n"
    yield "| the training ends by | exit code | status | code of the job | error | under the launcher |"
    yield "|---|---|---|---|---|---|"
    for name, end in ends.items():
        code = end.exit_code if end.exit_code >= 0 else f"{end.shell_code} ({signal.Signals(-end.exit_code).name})"
        known = "" if end.known_code is None else end.known_code
        launched = f"{end.launched_status}, {end.shell_code}"
        yield f"| {name} | {code} | `{end.status}` | {known} | {end.error or ''} | {launched} |"
    yield ""


@cache
def missing_requirement(end: End) -> str | None:
    """Return the reason for which this end cannot be tried on this machine, None if it can."""
    if SHELL in end.script and find_spec("IPython") is None:
        return "IPython is not installed: pip install -e .[test]"
    if end.command and (
        shutil.which(end.command[0]) is None
        or subprocess.run([*end.command, "true"], check=False, capture_output=True).returncode
    ):
        return f"{' '.join(end.command)} is not permitted here"
    return None


if __name__ == "__main__":
    sys.stdout.write(tables())
