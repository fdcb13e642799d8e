"""Script that collects the provenance of a run: reads a JSON request from stdin, writes the values to stdout.

It runs as a separate process, started by `trainwire.ingest.provenance.recording`, so that the programs it calls
(git, nvidia-smi) are not children of the training and do not delay it. It runs under the Python of the training,
version 3.8 or newer, and imports nothing outside the standard library.

Fields of the request: `items`, the names of the values to collect; `command`, the arguments of the training;
`folder`, the working folder; `sys_path`, the import path of the training (null: that of this process).
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

if __package__:
    from trainwire.ingest.provenance.masking import masked_arguments, masked_text, masked_variables
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from masking import (  # type: ignore[import-not-found, no-redef]
        masked_arguments,
        masked_text,
        masked_variables,
    )

    del sys.path[0]

GIT_TIMEOUT_S = 5
GPU_TIMEOUT_S = 10
MAX_DIFF_BYTES = 64 * 1024
MAX_PACKAGES = 2000
MAX_TEXT_CHARS = 4000
MAX_ARGUMENTS = 500
MAX_VARIABLES = 200

_SCHEDULER = re.compile(
    r"SLURM_(JOB_ID|JOB_NAME|STEP_ID|ARRAY_JOB_ID|ARRAY_TASK_ID|CLUSTER_NAME|JOB_PARTITION|JOB_NODELIST|NTASKS|"
    r"RESTART_COUNT)|PBS_JOBID|LSB_JOBID|JOB_COMPLETION_INDEX|POD_NAME|POD_NAMESPACE|POD_UID|NODE_NAME|"
    r"TORCHELASTIC_RUN_ID|RAY_JOB_ID"
)
_VARIABLES = re.compile(
    # Terraform's variables begin with TF_ too.
    r"(?!TF_(CLI|DATA_DIR|INPUT|IN_AUTOMATION|LOG|PLUGIN|REATTACH|REGISTRY|TOKEN|VAR|WORKSPACE))"
    r"(CUDA|CUBLAS|CUDNN|NCCL|OMP|MKL|OPENBLAS|PYTORCH|TORCH|TF|XLA|JAX|HF|TRANSFORMERS|WANDB|MLFLOW)_\w+|"
    r"PYTHONHASHSEED|PYTHONPATH|CONDA_DEFAULT_ENV|VIRTUAL_ENV|WORLD_SIZE"
)
_IMAGE_VARIABLES = ("TRAINWIRE_CONTAINER_IMAGE", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "CONTAINER_IMAGE")
_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
_DISTRIBUTION = re.compile(r"(?P<name>.+?)-(?P<version>\d[^-]*)(-py[\d.]+)?\.(dist-info|egg-info)")


def collect(request: dict[str, Any]) -> dict[str, Any]:
    """Collect the values named in `request["items"]`; return those that were found, by name.

    A value whose collection fails is left out.
    """
    found = {}
    for item in request["items"]:
        try:
            value = _COLLECTORS[item](request)
        except Exception:  # noqa: BLE001, S112 - the other items are useful without this one
            continue
        if value not in (None, "", {}, []):
            found[item] = value
    return found


def _command(request: dict[str, Any]) -> list[str]:
    arguments = [argument[:MAX_TEXT_CHARS] for argument in masked_arguments(request["command"][:MAX_ARGUMENTS])]
    more = len(request["command"]) - len(arguments)
    return arguments + ([f"... and {more} more arguments"] if more > 0 else [])


def _git(request: dict[str, Any]) -> dict[str, Any] | None:
    folder = request["folder"]
    top = _git_output(folder, "rev-parse", "--show-toplevel").strip()
    if not top:
        return None
    status = _git_output(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git_output(folder, "rev-parse", "--verify", "--quiet", "HEAD").strip(),
        "branch": _git_output(folder, "symbolic-ref", "--quiet", "--short", "HEAD").strip(),
        "remote": masked_text(_git_output(folder, "config", "--get", "remote.origin.url").strip()),
        "folder": top,
        "changed_files": len(status.splitlines()),
    }


def _diff(request: dict[str, Any]) -> str | None:
    # No program of the user's configuration (external diffs, text conversion) is run.
    options = ("--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short")
    diff = _git_output(request["folder"], "diff", *options, "HEAD", limit=MAX_DIFF_BYTES + 1)
    size = len(diff.encode(errors="replace"))
    cut = (
        diff if size <= MAX_DIFF_BYTES else diff.encode(errors="replace")[:MAX_DIFF_BYTES].decode(errors="ignore")
    )
    return masked_text(cut) + ("" if size <= MAX_DIFF_BYTES else f"\n... cut after {MAX_DIFF_BYTES:,} bytes\n")


def _git_output(folder: str, *arguments: str, limit: int = 1024 * 1024) -> str:
    """Return the output of a git command, at most `limit` bytes; empty if it fails or takes too long.

    Git runs without optional locks, so that it does not disturb other git commands in the repository.
    """
    git = shutil.which("git")
    if git is None:
        return ""
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_PAGER": "cat"}
    own = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=false")
    return _output([git, *own, *arguments], GIT_TIMEOUT_S, limit, cwd=folder, env={**os.environ, **quiet})


def _output(command: list[str], timeout_s: float, limit: int, **options: Any) -> str:
    """Return the output of a command, at most `limit` bytes.

    It is empty if the command fails or takes longer than `timeout_s`.
    """
    import threading  # noqa: PLC0415 - only here

    with subprocess.Popen(  # noqa: S603 - git and nvidia-smi
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options
    ) as process:
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            output = process.stdout.read(limit)
            if len(output) == limit:
                process.kill()
            code = process.wait()
        finally:
            timer.cancel()
    return output.decode(errors="replace") if code == 0 or len(output) == limit else ""


def _host(_: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _user(_: dict[str, Any]) -> str:
    return getpass.getuser()


def _python(_: dict[str, Any]) -> dict[str, str]:
    version, implementation = platform.python_version(), platform.python_implementation()
    return {"version": version, "implementation": implementation, "executable": sys.executable}


def _packages(request: dict[str, Any]) -> dict[str, str]:
    """Return the versions of the installed Python packages by name, at most `MAX_PACKAGES`.

    They are taken from names of folders such as `numpy-2.1.0.dist-info` on `sys.path`; no file is read.
    """
    packages: dict[str, str] = {}
    for folder in request["sys_path"] if request["sys_path"] is not None else sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            found = _DISTRIBUTION.fullmatch(name)
            if found:
                packages.setdefault(found["name"].replace("_", "-").lower(), found["version"])
    return dict(sorted(packages.items())[:MAX_PACKAGES])


def _gpu(_: dict[str, Any]) -> list[dict[str, str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    rows = [row.split(", ") for row in _output([program, *query], GPU_TIMEOUT_S, 64 * 1024).splitlines()]
    return [{"name": row[0], "driver": row[1], "memory": row[2].strip()} for row in rows if len(row) == 3]


def _container(_: dict[str, Any]) -> dict[str, str]:
    image = next((os.environ[name] for name in _IMAGE_VARIABLES if os.environ.get(name)), "")
    engine = "docker" if os.path.exists("/.dockerenv") else ""
    podman = dict(re.findall(r'^(\w+)="(.*)"$', _text("/run/.containerenv"), re.MULTILINE))
    if os.path.exists("/run/.containerenv"):
        engine = "podman"
    found = {"image": masked_text(image) or podman.get("image", ""), "engine": engine, "id": podman.get("id", "")}
    mounts = re.search(r"/containers/([0-9a-f]{64})/", _text("/proc/self/mountinfo"))
    if mounts and not found["id"]:
        found["id"] = mounts[1]
    return {name: value for name, value in found.items() if value}


def _scheduler(_: dict[str, Any]) -> dict[str, str]:
    found = {name: value for name, value in sorted(os.environ.items()) if _SCHEDULER.fullmatch(name)}
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        found.setdefault("POD_NAME", platform.node())
        found.setdefault("POD_NAMESPACE", _text(_NAMESPACE).strip())
    return {name: value[:MAX_TEXT_CHARS] for name, value in found.items() if value}


def _variables(_: dict[str, Any]) -> dict[str, str]:
    found = {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)}
    shown = masked_variables(dict(list(found.items())[:MAX_VARIABLES]))
    return {name: value[:MAX_TEXT_CHARS] for name, value in shown.items()}


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1024 * 1024)
    except OSError:
        return ""


_COLLECTORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "command": _command,
    "folder": lambda request: request["folder"],
    "git": _git,
    "diff": _diff,
    "host": _host,
    "user": _user,
    "python": _python,
    "packages": _packages,
    "gpu": _gpu,
    "container": _container,
    "scheduler": _scheduler,
    "variables": _variables,
}


def main() -> None:
    """Read a JSON request from stdin, collect the requested values, and write them as JSON to stdout."""
    request = json.load(sys.stdin)
    try:
        os.nice(5)
        json.dump(collect(request), sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the run has ended
        os._exit(0)


if __name__ == "__main__":
    main()
