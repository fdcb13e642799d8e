"""Finds the rank and the world size of this process in the environment."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from trainwire.schemas.wire.messages import MAX_WORLD_SIZE
from trainwire.schemas.wire.validation import MAX_ATTEMPT

logger = logging.getLogger("trainwire.ingest")

RANK_VARIABLE: Final = "TRAINWIRE_RANK"
WORLD_SIZE_VARIABLE: Final = "TRAINWIRE_WORLD_SIZE"
_LAUNCHERS: Final = (
    ("RANK", "WORLD_SIZE"),  # torchrun, accelerate, deepspeed, Kubeflow
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
"""The variables with the rank and the world size of each launcher.

The innermost launcher is first: torchrun and mpirun run within a Slurm step.
"""
RANKS: Final = (*(rank for rank, _ in _LAUNCHERS), "SLURM_PROCID")
"""Variables in which launchers give a process its rank, the innermost launcher first."""
_warned: set[str] = set()


class Place(NamedTuple):
    """Rank and world size (number of ranks) of a process; each is None if it is unknown."""

    rank: int | None = None
    world_size: int | None = None


def find_place(environ: Mapping[str, str], rank: int | None = None, world_size: int | None = None) -> Place:
    """Return the rank and world size set by the innermost launcher; the arguments, if given, override them.

    The world size of a launcher that sets no rank for this process is ignored, because it counts other processes.
    An invalid number, or a world size that is not above the rank, is ignored with a warning.
    """
    places = list(_places(environ))
    ranked = next((place for place in places if place.rank is not None), Place())
    found_rank = ranked.rank if rank is None else rank
    sizes = [ranked, *places] if found_rank is not None else []
    found_size = next((place.world_size for place in sizes if place.world_size is not None), None)
    return checked_place(found_rank, found_size if world_size is None else world_size)


def checked_place(rank: int | None, world_size: int | None) -> Place:
    """Return rank and world size. If the rank is not below the world size, warn once and set the size to None."""
    if rank is None or world_size is None or rank < world_size:
        return Place(rank, world_size)
    _warn_once(
        f"rank {rank} is not one of {world_size} ranks (0 to {world_size - 1}): how many there are is taken as "
        f"unknown; set {WORLD_SIZE_VARIABLE} to the number of ranks that use trainwire"
    )
    return Place(rank, None)


def _places(environ: Mapping[str, str]) -> Iterator[Place]:
    for rank, size in _LAUNCHERS:
        yield Place(_number(environ, rank, 0, MAX_ATTEMPT), _number(environ, size, 1, MAX_WORLD_SIZE))
    yield _slurm_place(environ)


def _slurm_place(environ: Mapping[str, str]) -> Place:
    """Return rank and world size in a Slurm step.

    An sbatch script is a single process, but it has SLURM_PROCID=0 and the SLURM_NTASKS of the whole job. Only
    `srun` sets SLURM_STEP_NUM_TASKS (older versions: SLURM_STEP_ID) and ranks above 0.
    """
    rank = _number(environ, "SLURM_PROCID", 0, MAX_ATTEMPT)
    size = _number(environ, "SLURM_STEP_NUM_TASKS", 1, MAX_WORLD_SIZE)
    if size is None and (rank or environ.get("SLURM_STEP_ID", "").isdecimal()):
        size = _number(environ, "SLURM_NTASKS", 1, MAX_WORLD_SIZE)
    return Place(rank, size)


def _number(environ: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    """Return an environment variable as an integer; None if it is not set.

    If it is no number from `least` to `most`, warn once and return None.
    """
    text = environ.get(name, "").strip()
    if not text:
        return None
    if text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    _warn_once(
        f"{name}={text[:100]!r} is not a number from {least} to {most}: ignored; "
        f"{RANK_VARIABLE} and {WORLD_SIZE_VARIABLE} replace it"
    )
    return None


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning("%s", text)
