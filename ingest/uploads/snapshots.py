"""Takes snapshots (hard links or copies) of checkpoint files, which the training may then change."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from trainwire.schemas.checkpoint_keys import MANIFEST, MAX_FILES

SnapshotMode: TypeAlias = Literal["copy", "link"]

PREFIX: Final = ".trainwire-"
_UNFINISHED: Final = ".trainwire.new-"
_LOCK: Final = "lock"
COPY_BYTES: Final = 64 * 1024 * 1024
SPARE_COPIES: Final = 2
"""Number of copies for which the disk must have room: the next checkpoint of the training must fit too."""


class NoSnapshot(Exception):  # noqa: N818 - named after its message
    """No snapshot could be taken; the message is the reason."""


class _Version(NamedTuple):
    """Identifies a version of a file: if the file is written to or replaced, at least one field changes."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


_Source: TypeAlias = tuple[Path, str, _Version]
"""The path of a file, its name within the checkpoint, and its version before the snapshot."""


@dataclass(frozen=True)
class SnapshotFile:
    """The snapshot of one file.

    `name` is its path within the checkpoint folder; it is empty if the checkpoint is a single file.
    """

    name: str
    path: Path
    version: _Version

    @property
    def size_bytes(self) -> int:
        """The size of the file in bytes when the snapshot was taken."""
        return self.version.size_bytes

    def is_intact(self) -> bool:
        """Return whether the file is unchanged since the snapshot. A copy never changes, but a hard link may."""
        return _version(self.path) == self.version


@dataclass(frozen=True)
class Snapshot:
    """The snapshot of one checkpoint, which is a file or a folder."""

    folder: Path
    is_folder: bool
    files: tuple[SnapshotFile, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files in bytes."""
        return sum(file.size_bytes for file in self.files)

    def discard(self) -> None:
        """Delete the files of this snapshot."""
        shutil.rmtree(self.folder, ignore_errors=True)


class SnapshotFolder:
    """A folder `.trainwire-*` in `parent` for the snapshots of this process, locked until `remove`.

    If the process is killed, its lock ends, and the next process that uses `parent` deletes the folder.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent))
        try:
            self._lock = os.open(unfinished / _LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._path = unfinished.rename(parent / unfinished.name.replace(_UNFINISHED, PREFIX))
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    @property
    def path(self) -> Path:
        """The path of the folder."""
        return self._path

    def new_path(self) -> Path:
        """Create an empty folder for one snapshot, and return its path."""
        return Path(tempfile.mkdtemp(dir=self._path))

    def exists(self) -> bool:
        """Return whether the snapshot folder still exists."""
        return self._path.is_dir()

    def remove(self) -> None:
        """Delete the folder with all snapshots in it."""
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)


def adopted(folder: Path) -> Snapshot:
    """Return a snapshot that another process has taken: the checkpoint must be the only entry of `folder`.

    If it cannot be read, delete the folder and raise `NoSnapshot`.
    """
    try:
        (source,) = folder.iterdir()
        files = tuple(SnapshotFile(name, path, version) for path, name, version in _sources(source))
        return Snapshot(folder, source.is_dir(), files)
    except (OSError, ValueError, NoSnapshot) as exc:  # ValueError: not one entry
        shutil.rmtree(folder, ignore_errors=True)
        raise exc if isinstance(exc, NoSnapshot) else NoSnapshot(f"its snapshot cannot be read: {exc}") from exc


class Snapshots:
    """Takes snapshots, in `root` or else in the parent folder of each checkpoint; `remove` deletes them all."""

    def __init__(self, mode: SnapshotMode, root: Path | None) -> None:
        self._mode = mode
        self._root = root
        self._folders: dict[Path, SnapshotFolder] = {}

    def take(self, source: Path) -> Snapshot:
        """Take a snapshot of a file, or of a folder with its files and subfolders.

        Raises `NoSnapshot` if it cannot be read, may not be uploaded, changes meanwhile, or the disk has no room.
        """
        try:
            sources = _sources(source)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            raise NoSnapshot(f"it cannot be read: {exc}") from exc
        folder: Path | None = None
        try:
            folder = self._folder_in(self._root or source.parent).new_path()
            return Snapshot(folder, source.is_dir(), self._taken_into(folder, sources))
        except (OSError, NoSnapshot) as exc:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(exc, NoSnapshot):
                raise
            raise NoSnapshot(f"no snapshot: {exc}; TRAINWIRE_CHECKPOINT_SPOOL can name another folder") from exc

    def remove(self) -> None:
        """Delete all snapshots."""
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
        if _version(source) != version:  # checked last: the snapshot is complete by now
            raise NoSnapshot(
                f"{source} was written to while its snapshot was taken: report it when it is complete"
            )
        return taken


def _sources(source: Path) -> list[_Source]:
    """Return all files of a checkpoint, sorted by name.

    Raises `NoSnapshot` for more than `MAX_FILES` files, for a file name that an upload cannot have, for a link to
    a folder, and for an entry that is not a file or a folder. Raises `OSError` if it cannot be read.
    """
    if not source.is_dir():
        return [(source, "", _version(source))]
    found = sorted((path.relative_to(source).as_posix(), path) for path in _files_below(source))
    if len(found) > MAX_FILES:
        raise NoSnapshot(f"{source} holds {len(found)} files: a checkpoint has at most {MAX_FILES}")
    for name, _ in found:
        if name == MANIFEST:
            raise NoSnapshot(f"{source} contains a {MANIFEST}, a name that trainwire writes itself: rename it")
        if "\\" in name:
            raise NoSnapshot(f"{source} holds {name!r}: a backslash is a separator on other systems, rename it")
    return [(path, name, _version(path)) for name, path in found]


def _files_below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith((PREFIX, _UNFINISHED)):
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
    """Copy a file with `copy_file_range`: Btrfs, XFS and others then share its blocks instead of copying data."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            while os.copy_file_range(reader.fileno(), writer.fileno(), COPY_BYTES):
                pass
        except OSError:  # not supported between these file systems; a full disk fails again
            reader.seek(os.lseek(writer.fileno(), 0, os.SEEK_END))
            shutil.copyfileobj(reader, writer, COPY_BYTES)


def _sweep(parent: Path) -> None:
    """Delete the snapshot folders of ended processes, whose locks are free."""
    for folder in parent.glob(f"{PREFIX}*/"):
        try:
            lock = os.open(folder / _LOCK, os.O_WRONLY)
        except OSError:  # another process is deleting it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its process lives
            pass
        finally:
            os.close(lock)
