"""The content of snapshots, whatever happens to the checkpoint afterwards."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from trainwire.ingest.uploads.snapshots import NoSnapshot, Snapshots


def read(snapshots: Snapshots, source: Path) -> dict[str, bytes]:
    """Take a snapshot and return names and bytes."""
    return {file.name: file.path.read_bytes() for file in snapshots.take(source).files}


def ours(folder: Path) -> list[Path]:
    """Return the entries that trainwire has created in a folder."""
    return list(folder.glob(".trainwire*"))


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_a_replaced_file_keeps_its_snapshot(tmp_path: Path, mode: str) -> None:
    """Both kinds of snapshot survive a new file under the same name; the end removes them."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"first")
    snapshots = Snapshots("link" if mode == "link" else "copy", None)
    (file,) = snapshots.take(path).files
    (tmp_path / "new").write_bytes(b"second")
    (tmp_path / "new").replace(path)
    assert (file.path.read_bytes(), file.is_intact(), file.size_bytes) == (b"first", True, 5)
    snapshots.remove()
    assert not ours(tmp_path)
    assert path.read_bytes() == b"second"


def test_a_file_that_is_rewritten_in_place(tmp_path: Path) -> None:
    """A copy stays unchanged; a link reports that it has changed."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"first")
    (copied,) = Snapshots("copy", None).take(path).files
    (linked,) = Snapshots("link", None).take(path).files
    path.write_bytes(b"other")
    os.utime(path, ns=(0, 0))  # a clock of coarse ticks may give both writings one time
    assert (copied.path.read_bytes(), copied.is_intact()) == (b"first", True)
    assert not linked.is_intact()


def test_a_file_that_is_being_written_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes during the copy is rejected: the copy would be half old and half new."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"first")
    copy = os.copy_file_range

    def copy_and_write(*arguments: int) -> int:
        copied = copy(*arguments)
        if not copied:
            path.write_bytes(b"longer than first")
        return copied

    monkeypatch.setattr("os.copy_file_range", copy_and_write)
    with pytest.raises(NoSnapshot, match="was written to while"):
        Snapshots("copy", None).take(path)


def test_a_file_system_that_cannot_copy_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no short way, the bytes are copied, also after a part of them."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"first")
    copy = os.copy_file_range
    calls = []

    def copy_some(source: int, target: int, _count: int) -> int:
        calls.append(target)
        if len(calls) > 1:
            raise OSError(errno.EXDEV, "not between these")
        return copy(source, target, 2)

    monkeypatch.setattr("os.copy_file_range", copy_some)
    assert read(Snapshots("copy", None), path) == {"": b"first"}


def test_a_folder_has_all_its_files(tmp_path: Path) -> None:
    """Names are relative to the folder, links to files are followed, our own folders are left out."""
    folder = tmp_path / "sharded"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "x").write_bytes(b"1")
    (folder / "a" / "b" / "y").write_bytes(b"2")
    (folder / "a" / "link").symlink_to(folder / "x")
    inner = Snapshots("copy", None)
    inner.take(folder / "x")
    assert ours(folder)
    snapshots = Snapshots("copy", None)
    assert read(snapshots, folder) == {"a/b/y": b"2", "a/link": b"1", "x": b"1"}
    assert not snapshots.take(folder / "x").is_folder
    assert snapshots.take(folder).is_folder


def test_what_cannot_be_taken_is_named(tmp_path: Path) -> None:
    """A missing file, a socket, a link to a folder and a manifest of the trainer's own are refused by name."""
    snapshots = Snapshots("copy", None)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(NoSnapshot, match=r"No such file.*missing\.pt"):
        snapshots.take(tmp_path / "missing.pt")
    with pytest.raises(NoSnapshot, match=r"null (byte|character)"):
        snapshots.take(tmp_path / "a\0b")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        with pytest.raises(NoSnapshot, match="socket is neither a file nor a folder"):
            snapshots.take(folder)
    (folder / "socket").unlink()
    (folder / "manifest.json").touch()
    with pytest.raises(NoSnapshot, match=r"contains a manifest\.json"):
        snapshots.take(folder)
    (folder / "manifest.json").unlink()
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(NoSnapshot, match="linked is a link to a folder"):
        snapshots.take(folder)


def test_the_folder_of_snapshots_can_be_named(tmp_path: Path) -> None:
    """With a root nothing is made beside the checkpoint, and the root itself is made where it is missing."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"first")
    root = tmp_path / "fast" / "disk"
    snapshots = Snapshots("copy", root)
    assert read(snapshots, path) == {"": b"first"}
    assert (len(ours(root)), ours(tmp_path)) == (1, [])
    snapshots.remove()
    assert not ours(root)


def test_an_output_folder_may_be_cleared(tmp_path: Path) -> None:
    """A trainer that deletes everything in its folder can still report the next checkpoint."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"first")
    snapshots = Snapshots("copy", None)
    for file in snapshots.take(path).files:
        file.path.unlink()
    for folder in ours(tmp_path):
        (folder / "lock").unlink()
        for inner in folder.iterdir():
            inner.rmdir()
        folder.rmdir()
    assert read(snapshots, path) == {"": b"first"}
    snapshots.remove()


def test_a_discarded_snapshot_leaves_nothing(tmp_path: Path) -> None:
    """Its bytes are off the disk at once, not only at the end."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"first")
    snapshots = Snapshots("copy", None)
    snapshot = snapshots.take(path)
    snapshot.discard()
    (folder,) = ours(tmp_path)
    assert [file.name for file in folder.iterdir()] == ["lock"]
    snapshots.remove()
