"""The spool returns all readable messages after a crash, disk errors and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.ingest.spool.folder import About, SourceFolder, read_about, remove_abandoned, source_folders
from trainwire.ingest.spool.listing import list_spool
from trainwire.ingest.spool.segments import MAGIC, SEGMENT_BYTES, Damage, framed, unframed
from trainwire.ingest.spool.spool import Span, Spool
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import encode_entry, open_envelope
from trainwire.schemas.wire.messages import Logs, Message

LIMIT = 1 << 40
NOBODY = 65534
ABOUT = About(7, 1, "0-test", None, "redis:6379/0")


@pytest.fixture
def folder(tmp_path: Path) -> SourceFolder:
    """A source's folder."""
    return SourceFolder.create(tmp_path / "spool", ABOUT)


def write(spool: Spool, *seqs: int, kind: Kind = "logs", line: str = "line {}") -> None:
    """Write messages of one line each."""
    for seq in seqs:
        body = Logs(log_type="stdout", lines=[line.format(seq)], ts=[seq])
        spool.append(kind, seq, 1, encode_entry(Message("logs", 7, 1, "0-test", seq, body)))


def lines(spool: Spool, first: int, last: int, kind: Kind = "logs") -> list[str]:
    """Read messages back, one line for each; an empty one and one that is gone are named."""
    found: list[str] = []
    seq = first
    while seq <= last:
        entries = spool.read(kind, seq) or {last + 1: {}}
        found += ["gone"] * (min(*entries, last + 1) - seq)
        seq = min(*entries, last + 1)
        for number, entry in sorted(entries.items()):
            if number > last:
                break
            assert number >= seq
            found += ["gone"] * (number - seq)
            fields = {str(name).encode(): _raw(value) for name, value in entry.items()}
            envelope = open_envelope(fields)
            assert (envelope.job_id, envelope.source, envelope.seq) == (7, "0-test", number)
            body = decode_body("logs", envelope)
            assert isinstance(body, Logs)
            found += body.lines or ["empty"]
            seq = number + 1
    return found


def _raw(value: str | int | bytes) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@given(st.lists(st.binary(max_size=50)), st.binary(max_size=50), st.data())
def test_records_are_found_around_any_damage(payloads: list[bytes], noise: bytes, data: st.DataObject) -> None:
    """Noise between records, a torn end, a changed byte: every untouched record comes back, none is made up."""
    frames = [framed(payload) for payload in payloads]
    at = data.draw(st.integers(0, len(frames)))
    assert list(unframed(b"".join(frames))) == payloads
    noisy = b"".join([*frames[:at], noise, *frames[at:]])
    if MAGIC not in noise:
        assert [found for found in unframed(noisy) if not isinstance(found, Damage)] == payloads
    if not frames:
        return
    whole = bytearray(b"".join(frames))
    flipped = data.draw(st.integers(0, len(whole) - 1))
    whole[flipped] ^= data.draw(st.integers(1, 255))
    kept = [found for found in unframed(bytes(whole)) if not isinstance(found, Damage)]
    assert len(kept) == len(payloads) - 1
    torn = b"".join(frames)[:-1]
    assert [found for found in unframed(torn) if not isinstance(found, Damage)] == payloads[:-1]


def test_what_is_written_is_read_by_who_comes_next(folder: SourceFolder) -> None:
    """After a crash the next process finds all messages in the files."""
    spool = Spool(folder, LIMIT)
    write(spool, 1, 2, 3)
    write(spool, 1, kind="metrics")
    spool.close()
    again = Spool(folder, LIMIT)
    assert again.spans() == {"logs": Span(1, 3), "metrics": Span(1, 1)}
    assert lines(again, 1, 3) == ["line 1", "line 2", "line 3"]
    assert lines(again, 2, 3) == ["line 2", "line 3"]


def test_acked_files_are_removed(folder: SourceFolder) -> None:
    """A file goes once all in it is acked; the others and the one that is written to stay readable."""
    spool = Spool(folder, LIMIT)
    big = os.urandom(100_000).hex() + " {}"
    write(spool, *range(1, 21), line=big)
    before = spool.size_bytes
    assert before > 1.5 * SEGMENT_BYTES
    spool.release("logs", 15)
    assert spool.size_bytes < before
    assert [line.rpartition(" ")[2] for line in lines(spool, 16, 20)] == ["16", "17", "18", "19", "20"]
    spool.release("logs", 20)
    assert spool.size_bytes <= SEGMENT_BYTES + 300_000
    write(spool, 21)
    assert lines(spool, 21, 21) == ["line 21"]


def test_a_flipped_bit_costs_its_message_and_no_other(folder: SourceFolder) -> None:
    """The damaged message is left out; those before and after it are read."""
    spool = Spool(folder, LIMIT)
    write(spool, 1, 2, 3)
    spool.close()
    (path,) = folder.path.glob("logs-*.seg")
    data = bytearray(path.read_bytes())
    data[data.index(b"line 2")] ^= 1
    path.write_bytes(data)
    assert lines(Spool(folder, LIMIT), 1, 3) == ["line 1", "gone", "line 3"]


def test_a_torn_tail_costs_the_torn_message(folder: SourceFolder) -> None:
    """A half written record is ignored: its message counts as never numbered."""
    spool = Spool(folder, LIMIT)
    write(spool, 1, 2, 3)
    spool.close()
    (path,) = folder.path.glob("logs-*.seg")
    os.truncate(path, path.stat().st_size - 5)
    again = Spool(folder, LIMIT)
    assert again.spans() == {"logs": Span(1, 2)}
    assert lines(again, 1, 2) == ["line 1", "line 2"]


def test_an_unreadable_file_is_no_obstacle(folder: SourceFolder) -> None:
    """The messages of a file of zeros, as left by a system crash, are lost; those of the next file are sent."""
    spool = Spool(folder, LIMIT)
    write(spool, *range(1, 12), line="x" * 10 + os.urandom(150_000).hex() + " {}")
    spool.close()
    first, *_ = sorted(folder.path.glob("logs-*.seg"))
    first.write_bytes(bytes(first.stat().st_size))
    again = Spool(folder, LIMIT)
    assert again.spans()["logs"] == Span(1, 11)
    found = lines(again, 1, 11)
    gone = found.count("gone")
    assert gone > 1
    assert found[:gone] == ["gone"] * gone
    assert [line.rpartition(" ")[2] for line in found[gone:]] == [f"{n}" for n in range(gone + 1, 12)]


def test_records_of_another_version_are_no_obstacle(folder: SourceFolder) -> None:
    """An undecodable record costs itself alone, among messages and among notes of dropped messages."""
    spool = Spool(folder, LIMIT)
    write(spool, 1)
    spool.close()
    (path,) = folder.path.glob("logs-*.seg")
    with path.open("ab") as file:
        file.write(framed(b"\xc1"))
    (folder.path / "dropped.rec").write_bytes(framed(b"\xc1"))
    (folder.path / "logs-notes.seg").touch()
    assert lines(Spool(folder, LIMIT), 1, 1) == ["line 1"]


def test_a_file_that_somebody_deleted_is_no_obstacle(folder: SourceFolder) -> None:
    """A file that is deleted under a live process is left out; the others are read."""
    spool = Spool(folder, LIMIT)
    write(spool, *range(1, 12), line="x" * 10 + os.urandom(150_000).hex() + " {}")
    first, *_ = sorted(folder.path.glob("logs-*.seg"))
    first.unlink()
    found = lines(spool, 1, 11)
    assert found[0] == "gone"
    assert found[-1].endswith(" 11")


def test_folders_of_other_users_hide_no_others() -> None:
    """In a spool shared by several users, unreadable folders are listed, and the others are found."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as made:
        spool = Path(made)
        spool.chmod(0o777)
        mine = SourceFolder.create(spool, ABOUT)
        os.seteuid(NOBODY)
        try:
            theirs = SourceFolder.create(spool, msgspec.structs.replace(ABOUT, job_id=8))
            theirs.forget()
            assert set(source_folders(spool)) == {mine.path, theirs.path}
            assert [source.about.job_id for source in list_spool(spool)] == [8]
            assert SourceFolder.claim(mine.path) is None
        finally:
            os.seteuid(0)
            mine.forget()


def test_what_is_dropped_leaves_empty_messages(folder: SourceFolder) -> None:
    """The oldest file goes; its numbers stay, with nothing in them, for the process that comes next too."""
    spool = Spool(folder, LIMIT)
    write(spool, *range(1, 21), line=os.urandom(100_000).hex() + " {}")
    gone = spool.drop_oldest("logs", above=0)
    assert gone is not None
    assert 1 < gone.last < 20
    items = gone.items
    assert (gone.first, gone.last) == (1, items)
    spool.close()
    for reader in (spool, Spool(folder, LIMIT)):
        assert reader.spans()["logs"] == Span(1, 20)
        found = lines(reader, 1, 20)
        assert found[:items] == ["empty"] * items
        assert [line.rpartition(" ")[2] for line in found[items:]] == [f"{n}" for n in range(items + 1, 21)]


def test_the_file_that_is_written_to_is_never_dropped(folder: SourceFolder) -> None:
    """With a single file nothing can be dropped."""
    spool = Spool(folder, LIMIT)
    write(spool, 1)
    assert spool.drop_oldest("logs", above=0) is None
    assert lines(spool, 1, 1) == ["line 1"]


def test_only_what_lies_above_is_dropped(folder: SourceFolder) -> None:
    """A file that holds a message at or below the given seq stays."""
    spool = Spool(folder, LIMIT)
    write(spool, *range(1, 31), line=os.urandom(100_000).hex() + " {}")
    gone = spool.drop_oldest("logs", above=3)
    assert gone is not None
    assert gone.first > 3
    assert lines(spool, 3, 3)[0].endswith(" 3")
    assert lines(spool, gone.first, gone.last) == ["empty"] * gone.items


def test_a_full_disk_is_an_error_and_nothing_is_torn(tmp_path: Path) -> None:
    """On a disk of 300 kB the messages that fit are there, whole; the one that did not fit raises."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        spool = Spool(SourceFolder.create(disk / "spool", ABOUT), LIMIT)
        line = os.urandom(30_000).hex()
        with pytest.raises(OSError, match="No space"):
            write(spool, *range(1, 100), line=line + " {}")
        taken = spool.spans()["logs"].last
        assert 2 <= taken < 10
        assert [text.rpartition(" ")[2] for text in lines(spool, 1, taken)] == [
            f"{n}" for n in range(1, taken + 1)
        ]
        spool.close()
        assert Spool(spool.folder, LIMIT).spans()["logs"] == Span(1, taken)
        spool.remove()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_living_process_keeps_its_folder(tmp_path: Path) -> None:
    """The folder of a live process cannot be claimed; after a kill it can."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from trainwire.ingest.spool.folder import About, SourceFolder\n"
        "SourceFolder.create(Path(sys.argv[1]), About(7, 2, '3-abc', 3, 'redis:6379/0'))\n"
        "print('made', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, cwd=Path(__file__).parents[4]
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        (path,) = source_folders(tmp_path)
        assert SourceFolder.claim(path) is None
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        claimed = SourceFolder.claim(path)
        assert claimed is not None
        assert (claimed.about.job_id, claimed.about.attempt, claimed.about.rank) == (7, 2, 3)
        assert SourceFolder.claim(path) is None
        claimed.remove()
        assert list(source_folders(tmp_path)) == []
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def test_folders_without_messages_are_removed_after_an_hour(tmp_path: Path) -> None:
    """Folders whose creation or deletion was interrupted are deleted: not new, full or foreign ones."""
    hour_ago = time.time() - 3700
    contents: dict[str, list[str]] = {
        "7-0-" + "a" * 24: [],
        "7-0-" + "b" * 24: ["lock", "source.json.new"],
        "7-0-" + "c" * 24: ["lock", "logs-00000000000000000001.seg"],
        "7-0-" + "d" * 24: ["lock", "source.json"],
        "of another program": [],
        "7-0-" + "e" * 24: [],
    }
    for name, files in contents.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        if name != "7-0-" + "e" * 24:
            os.utime(tmp_path / name, (hour_ago, hour_ago))
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(list(contents)[2:])


def test_a_forked_child_does_not_hold_its_parents_folder(folder: SourceFolder) -> None:
    """A child that outlives its parent does not keep the parent's folder locked."""
    holder = SourceFolder.claim(folder.path)
    assert holder is None
    child = os.fork()
    if child == 0:
        folder.forget()
        signal.pause()
        os._exit(0)
    try:
        folder.forget()  # as the parent's death does
        claimed = _claimed_soon(folder.path)
        assert claimed is not None
        claimed.forget()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _claimed_soon(path: Path) -> SourceFolder | None:
    for _ in range(500):
        if (claimed := SourceFolder.claim(path)) is not None:
            return claimed
        signal.sigtimedwait([], 0.01)
    return None


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"job_id": "\xff"}', b"[" * 100_000], ids=["empty", "cut", "text", "deep"]
)
def test_a_damaged_description_is_none(tmp_path: Path, content: bytes) -> None:
    """A folder whose source.json cannot be decoded has no description, and disturbs no other folder."""
    (tmp_path / "source.json").write_bytes(content)
    assert read_about(tmp_path) is None
