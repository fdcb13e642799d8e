"""Under which key a checkpoint is uploaded, and which upload takes the place of which."""

from __future__ import annotations

import re

import pytest

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.uploads.checkpoint import object_key, slot_of
from trainwire.schemas.checkpoint_keys import S3Uri, upload_folder_of
from trainwire.schemas.wire.messages import Checkpoint

ORIGIN = Origin(42, 3, "0-1a2b", None)
TS = 1_790_000_000_123_456_789
UPLOAD = "20260921T141320Z-"


def key_of(
    checkpoint: Checkpoint, *, prefix: str = "checkpoints", origin: Origin = ORIGIN, is_folder: bool = False
) -> str:
    """Return the key of an upload, without the random part of its folder."""
    key = object_key(prefix, origin, checkpoint, is_folder)
    return re.sub(f"{UPLOAD}[0-9a-f]{{8}}/", "NEW/", key)


@pytest.mark.parametrize(
    ("kind", "epoch", "step", "path", "key"),
    [
        ("best", None, None, "/runs/model.pt", "checkpoints/42/3/NEW/best.pt"),
        ("epoch", 7, 900, "/runs/model.safetensors", "checkpoints/42/3/NEW/epoch-7-step900.safetensors"),
        ("epoch", None, 900, "/runs/model.pt", "checkpoints/42/3/NEW/epoch-step900.pt"),
        ("last", None, 900, "/runs/model.pt", "checkpoints/42/3/NEW/last-step900.pt"),
        ("last", 0, 0, "/runs.d/model", "checkpoints/42/3/NEW/last-0-step0"),
        ("a/../b", None, None, "/runs/x.pt", "checkpoints/42/3/NEW/a%2F%2E%2E%2Fb.pt"),
        ("\ud800", None, None, "/runs/x.p\ud800 t", "checkpoints/42/3/NEW/%3F.p%3F%20t"),
    ],
)
def test_a_key_says_what_it_is(kind: str, epoch: int | None, step: int | None, path: str, key: str) -> None:
    """Kind, epoch, step, and the suffix of the file; separators are escaped."""
    assert key_of(Checkpoint(ts=TS, kind=kind, uri=path, epoch=epoch, step=step)) == key


def test_a_folder_ends_with_a_slash() -> None:
    """Its name's dots are no suffix."""
    checkpoint = Checkpoint(ts=TS, kind="epoch", uri="/runs/step.100", epoch=2)
    assert key_of(checkpoint, prefix="a/b", is_folder=True) == "a/b/42/3/NEW/epoch-2/"


def test_an_empty_prefix_leaves_no_slash() -> None:
    """Keys then begin with the job."""
    assert key_of(Checkpoint(ts=TS, kind="last", uri="/x.pt"), prefix="") == "42/3/NEW/last.pt"


def test_ranks_and_unknown_attempts_have_keys_of_their_own() -> None:
    """The key names the rank, and the source where the attempt is not known."""
    checkpoint = Checkpoint(ts=TS, kind="last", uri="/x.pt")
    third = key_of(checkpoint, prefix="p", origin=Origin(42, 3, "2-1a2b", 2))
    unsaid = key_of(checkpoint, prefix="p", origin=Origin(42, 0, "0-1a2b", None))
    assert (third, unsaid) == ("p/42/3/NEW/last-rank2.pt", "p/42/source-0-1a2b/NEW/last.pt")


@pytest.mark.parametrize("ts", [TS, 0, -1, 2**63 - 1, 10**30])
def test_no_two_uploads_share_a_key(ts: int) -> None:
    """A thousand uploads of the same checkpoint have a thousand folders, whatever the clock reads."""
    checkpoint = Checkpoint(ts=ts, kind="last", uri="/x.pt", epoch=1, step=2)
    keys = {object_key("p", ORIGIN, checkpoint, is_folder=False) for _ in range(1000)}
    folders = {upload_folder_of(S3Uri("b", "p/42/"), key) for key in keys}
    assert len(folders) == 1000
    assert None not in folders


@pytest.mark.parametrize(
    "key", ["p/42/3/last.pt", "p/42/3/NEW/last.pt", "p/421/3/20260921T141320Z-0a1b2c3d/x", "x/42/3/", "p/42/"]
)
def test_a_users_own_object_is_no_upload(key: str) -> None:
    """Only folders with the name of an upload, below the job's folder, are taken for one."""
    assert upload_folder_of(S3Uri("b", "p/42/"), key) is None


@pytest.mark.parametrize(
    ("newer", "is_superseding"),
    [
        ({"step": 2}, True),
        ({"epoch": 2}, False),
        ({"kind": "best"}, False),
        ({"uri": "/x.bin"}, False),
        ({"uri": "/y.pt"}, True),
    ],
)
def test_a_newer_last_takes_the_place_of_the_one_before(newer: dict[str, object], is_superseding: bool) -> None:
    """Of the kind `last` a newer step does, another epoch, kind or suffix does not."""
    fields: dict[str, object] = {"ts": TS, "kind": "last", "uri": "/x.pt", "epoch": 1, "step": 1}
    one, other = (Checkpoint(**each) for each in (fields, fields | newer))  # type: ignore[arg-type]
    assert (slot_of(one, is_folder=False) == slot_of(other, is_folder=False)) is is_superseding


def test_each_step_of_another_kind_stays() -> None:
    """Two steps of one epoch do not supersede each other, nor does a folder a file."""
    steps = [Checkpoint(ts=TS, kind="epoch", uri="/x", epoch=1, step=step) for step in (1, 2)]
    assert slot_of(steps[0], is_folder=False) != slot_of(steps[1], is_folder=False)
    assert slot_of(steps[0], is_folder=False) != slot_of(steps[0], is_folder=True)
