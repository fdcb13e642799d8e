"""Under which key a checkpoint is stored."""

from __future__ import annotations

import pytest

from ingest.object_keys import object_key
from ingest.outbox import Origin
from schemas.messages import Checkpoint

ORIGIN = Origin(42, 3, "0-1a2b", None)


@pytest.mark.parametrize(
    ("kind", "epoch", "step", "path", "key"),
    [
        ("best", None, None, "/runs/model.pt", "checkpoints/42/3/best.pt"),
        ("epoch", 7, 900, "/runs/model.safetensors", "checkpoints/42/3/epoch-7.safetensors"),
        ("epoch", None, 900, "/runs/model.pt", "checkpoints/42/3/epoch-step900.pt"),
        ("last", None, 900, "/runs/model.pt", "checkpoints/42/3/last.pt"),
        ("last", 0, None, "/runs.d/model", "checkpoints/42/3/last-0"),
        ("a/../b", None, None, "/runs/x.pt", "checkpoints/42/3/a%2F%2E%2E%2Fb.pt"),
        ("\ud800", None, None, "/runs/x.p\ud800 t", "checkpoints/42/3/%3F.p%3F%20t"),
    ],
)
def test_a_key_says_what_it_is(kind: str, epoch: int | None, step: int | None, path: str, key: str) -> None:
    """Kind, epoch or step, and the file's own suffix; what would be a path of its own is escaped."""
    checkpoint = Checkpoint(ts=1, kind=kind, uri=path, epoch=epoch, step=step)
    assert object_key("checkpoints", ORIGIN, checkpoint, is_folder=False) == key


def test_a_folder_ends_with_a_slash() -> None:
    """Its name's dots are no suffix."""
    checkpoint = Checkpoint(ts=1, kind="epoch", uri="/runs/step.100", epoch=2)
    assert object_key("a/b", ORIGIN, checkpoint, is_folder=True) == "a/b/42/3/epoch-2/"


def test_an_empty_prefix_leaves_no_slash() -> None:
    """Keys then begin with the job."""
    assert object_key("", ORIGIN, Checkpoint(ts=1, kind="last", uri="/x.pt"), is_folder=False) == "42/3/last.pt"


def test_ranks_and_unknown_attempts_have_keys_of_their_own() -> None:
    """The ranks of one attempt do not overwrite each other, nor do two runs that do not know their attempt."""
    checkpoint = Checkpoint(ts=1, kind="last", uri="/x.pt")
    third = object_key("p", Origin(42, 3, "2-1a2b", 2), checkpoint, is_folder=False)
    unsaid = object_key("p", Origin(42, 0, "0-1a2b", None), checkpoint, is_folder=False)
    assert (third, unsaid) == ("p/42/3/last-rank2.pt", "p/42/source-0-1a2b/last.pt")
