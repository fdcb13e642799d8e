"""A checkpoint's bytes as they were when the trainer said it, whatever it does to the file afterwards."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from trainwire.ingest.uploads.snapshot_folder import SnapshotFolder, is_snapshot_folder
from trainwire.schemas.checkpoint_keys import MANIFEST, MAX_FILES

SnapshotMode: TypeAlias = Literal["copy", "link"]

COPY_BYTES: Final = 64 * 1024 * 1024
SPARE_COPIES: Final = 2
"""A copy is made where there is room for so many: what the trainer saves next must find room too."""


class NoSnapshot(Exception):  # noqa: N818 - said as it stands
    """There is no snapshot of it; the text says why."""


class _Version(NamedTuple):
    """What changes when a file is written to or replaced."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


_Source: TypeAlias = tuple[Path, str, _Version]
"""A file of a checkpoint, its name in it, and its version before the snapshot."""


@dataclass(frozen=True)
class SnapshotFile:
    """One file: its path below the checkpoint's folder (empty where the checkpoint is a file), and its bytes."""

    name: str
    path: Path
    version: _Version

    @property
    def size_bytes(self) -> int:
        """Return its size when the snapshot was taken."""
        return self.version.size_bytes

    def is_intact(self) -> bool:
        """Tell whether it has not been written to since; only what is linked can have been."""
        return _version(self.path) == self.version


@dataclass(frozen=True)
class Snapshot:
    """The files of one checkpoint."""

    folder: Path
    is_folder: bool
    files: tuple[SnapshotFile, ...]

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.size_bytes for file in self.files)

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Snapshots:
    """Takes snapshots, beside each checkpoint or below `root`, and removes them all at the end."""

    def __init__(self, mode: SnapshotMode, root: Path | None) -> None:
        self._mode = mode
        self._root = root
        self._folders: dict[Path, SnapshotFolder] = {}

    def take(self, source: Path) -> Snapshot:
        """Return a snapshot of a file or of a folder with all that is in it; raise `NoSnapshot`."""
        try:
            sources = _sources(source)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            raise NoSnapshot(f"it cannot be read: {exc}") from exc
        folder: Path | None = None
        try:
            folder = self._folder_in(self._root or source.parent).new_path()
            return Snapshot(folder, source.is_dir(), self._taken_into(folder, sources))
        except OSError as exc:
            _discard(folder)
            raise NoSnapshot(f"no snapshot: {exc}; TRAINWIRE_CHECKPOINT_SPOOL can name another folder") from exc
        except NoSnapshot:
            _discard(folder)
            raise

    def remove(self) -> None:
        """Remove what is left of all snapshots."""
        for folder in self._folders.values():
            folder.remove()
        self._folders.clear()

    def _folder_in(self, parent: Path) -> SnapshotFolder:
        folder = self._folders.get(parent)
        if folder is None or not folder.exists():  # a trainer may clear its output folder
            folder = self._folders[parent] = SnapshotFolder(parent)
        return folder

    def _taken_into(self, folder: Path, sources: list[_Source]) -> tuple[SnapshotFile, ...]:
        if self._mode == "copy":
            _check_room(folder, sum(version.size_bytes for _, _, version in sources))
        return tuple(
            self._taken(path, name, version, folder / str(number))
            for number, (path, name, version) in enumerate(sources)
        )

    def _taken(self, source: Path, name: str, version: _Version, target: Path) -> SnapshotFile:
        if self._mode == "link":
            os.link(os.path.realpath(source), target)
        else:
            _copy(source, target)
        taken = SnapshotFile(name, target, _version(target))
        if _version(source) != version:  # asked last: until now it has not changed, nor what a link shares with it
            raise NoSnapshot(f"{source} was written to while its snapshot was taken: say it when it is complete")
        return taken


def _sources(source: Path) -> list[_Source]:
    """Return path, name and version of every file of a checkpoint, in order of name."""
    if not source.is_dir():
        return [(source, "", _version(source))]
    found = sorted((path.relative_to(source).as_posix(), path) for path in _files_below(source))
    if len(found) > MAX_FILES:
        raise NoSnapshot(f"{source} holds {len(found)} files: more than {MAX_FILES} are no checkpoint of ours")
    for name, _ in found:
        if name == MANIFEST:
            raise NoSnapshot(f"{source} has a {MANIFEST} of its own, where ours has to be: rename it")
        if "\\" in name:
            raise NoSnapshot(f"{source} holds {name!r}: a backslash leads elsewhere on other machines, rename it")
    return [(path, name, _version(path)) for name, path in found]


def _files_below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not is_snapshot_folder(entry.name):
                    yield from _files_below(Path(entry.path))
            elif entry.is_dir():
                raise NoSnapshot(f"{entry.path} is a link to a folder, which is not followed: put a folder there")
            else:
                yield Path(entry.path)


def _version(path: Path) -> _Version:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise NoSnapshot(f"{path} is neither a file nor a folder")
    return _Version(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _check_room(folder: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < SPARE_COPIES * size_bytes:
        raise NoSnapshot(
            f"its snapshot needs {SPARE_COPIES} x {size_bytes} bytes free and {folder.parent.parent} has "
            f"{free_bytes}: make room, or name another folder with TRAINWIRE_CHECKPOINT_SPOOL"
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a file inside the kernel: Btrfs, XFS and others then share its blocks, which takes no time."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            while os.copy_file_range(reader.fileno(), writer.fileno(), COPY_BYTES):
                pass
        except OSError:  # not between these two file systems; a full disk says so again
            reader.seek(os.lseek(writer.fileno(), 0, os.SEEK_END))
            shutil.copyfileobj(reader, writer, COPY_BYTES)


def _discard(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
