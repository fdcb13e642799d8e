"""Identifies the distributed launch (by torchrun, srun or mpirun) that this process is a rank of.

All ranks of a launch must compute the same identity (a string). No other launch may have the same identity, not
even the same command a year later.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainwire.ingest.process.proc_stat import PARENT, START_TIME, proc_stat
from trainwire.ingest.process.ranks import RANKS, Place

_UUID: Final = r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}"
_SIZES: Final = (
    ("WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_SIZE", "MPI_LOCALNRANKS"),
)
"""Pairs of variables of torchrun, Open MPI and MPICH: the number of ranks, and the number on this machine."""
_NODES: Final = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_DEEPEST: Final = 64


class UnknownLaunch(ValueError):  # noqa: N818 - a wrong setting, as the other ValueErrors of `Run`
    """The ranks of a launch cannot compute the same job number; the error text names the ways to set one."""

    def __init__(self, place: Place) -> None:
        size = "several" if place.world_size is None else place.world_size
        super().__init__(
            f"rank {place.rank or 0} of {size} ranks has no job number, and no variable of their launcher is "
            "equal in all of them and new with each launch: start it with `trainwire run -- COMMAND`, or export "
            "TRAINWIRE_JOB_ID with one number for all ranks"
        )


def is_one_of_several(place: Place) -> bool:
    """Return whether this process is one of several ranks."""
    return bool(place.rank) or (place.world_size or 1) > 1


def find_launch(environ: Mapping[str, str], place: Place, proc: Path = Path("/proc")) -> str | None:
    """Return a string that is the same in all ranks of this launch only.

    Return None if it cannot be determined, or if there is only one rank.
    """
    if not is_one_of_several(place):
        return None
    return _torch_uuid(environ) or _launcher_process(environ, proc) or _slurm_step(environ)


def _torch_uuid(environ: Mapping[str, str]) -> str | None:
    """Return torchrun's rendezvous id if it is random, as with `--standalone`; None otherwise.

    An id chosen by the user may be the same in another launch.
    """
    run_id = environ.get("TORCHELASTIC_RUN_ID", "").strip()
    return f"torch:{run_id.lower()}" if re.fullmatch(_UUID, run_id, re.IGNORECASE) else None


def _slurm_step(environ: Mapping[str, str]) -> str | None:
    """Return the identity of a Slurm step. A requeued job keeps it, and becomes the next attempt of the same job.

    mpirun starts the ranks of each node in a different step, so its PMIx namespace is used in place of the step.
    The rendezvous id of torchrun is added, because one step may run torchrun several times.
    """
    job, step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "")
    namespace = environ.get("PMIX_NAMESPACE") if "OMPI_COMM_WORLD_RANK" in environ else None
    if not job.isdecimal() or not (namespace or step.isdecimal()):
        return None
    cluster = environ.get("SLURM_CLUSTER_NAME", "")
    inner = environ.get("TORCHELASTIC_RUN_ID", "")
    return f"slurm:{cluster}/{job}/{namespace or step}/{inner}"


def _launcher_process(environ: Mapping[str, str], proc: Path) -> str | None:
    """Return the identity of the launcher's process (machine, process id, start) if all ranks are on this machine.

    The launcher is the nearest ancestor without the variable that gives this process its rank. If the training
    sets RANK itself, only a parent that started this process by multiprocessing counts, because a shell in
    which a person has exported RANK would otherwise count as the launcher of everything started there.
    """
    variable = next((name for name in RANKS if environ.get(name)), None)
    if variable is None or not _is_on_one_machine(environ, variable):
        return None
    is_by_hand = variable == "RANK" and "TORCHELASTIC_RUN_ID" not in environ
    with suppress(OSError, ValueError, IndexError):  # another system, or another user's process
        for pid in _multiprocessing_parent() if is_by_hand else _ancestors(proc):
            entries = (proc / str(pid) / "environ").read_bytes().split(b"\0")
            if is_by_hand or not any(entry.startswith(f"{variable}=".encode()) for entry in entries):
                boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
                space = os.readlink(proc / str(pid) / "ns" / "pid")
                started = proc_stat(pid, proc)[START_TIME].decode()
                inner = environ.get("TORCHELASTIC_RUN_ID", "")
                return f"process:{os.uname().nodename}/{boot}/{space}/{pid}/{started}/{inner}"
    return None


def _multiprocessing_parent() -> list[int]:
    """Return a list with the parent's process id; empty if this process was not started by multiprocessing."""
    module = sys.modules.get("multiprocessing.process")
    parent = None if module is None else module.parent_process()
    return [] if parent is None or parent.pid is None else [parent.pid]


def _is_on_one_machine(environ: Mapping[str, str], variable: str) -> bool:
    if variable == "SLURM_PROCID":
        return next((environ[name] for name in _NODES if environ.get(name)), None) == "1"
    if environ.get("MASTER_ADDR") in _LOOPBACK:
        return True
    return any(environ.get(size) and environ.get(size) == environ.get(local) for size, local in _SIZES)


def _ancestors(proc: Path) -> Iterator[int]:
    pid = os.getppid()
    for _ in range(_DEEPEST):
        if not pid:
            return
        yield pid
        pid = int(proc_stat(pid, proc)[PARENT])
