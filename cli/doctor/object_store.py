"""Checks of the object store: it can be reached, and allows the necessary operations."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, S3Store, S3Unavailable, open_s3
from trainwire.workers.findings import Finding, Findings, Part

S3: Final = Part("s3")


def check_s3(bucket: str, prefix: str) -> Findings:
    """Yield one finding per operation that the object store must allow, or one error if it does not respond.

    A small object below `prefix` is written, read and deleted.
    """
    key = "/".join(part for part in (prefix.strip("/"), f".trainwire-doctor-{secrets.token_hex(6)}") if part)
    probe = S3Uri(bucket, key)
    try:
        store = open_s3()
        yield from _try_all(store, probe)
    except S3Unavailable as exc:
        yield S3.error("answers", str(exc), "start it, or correct AWS_ENDPOINT_URL and the credentials")


def _try_all(store: S3Store, probe: S3Uri) -> Findings:
    steps: dict[str, Callable[[], object]] = {
        "put": lambda: store.put(probe, b"trainwire doctor\n"),
        "head": lambda: store.head(probe),
        "read": lambda: b"".join(store.read(probe)),
        "list": lambda: store.has_any(S3Uri(probe.bucket, probe.key.rpartition("/")[0])),
        "delete": lambda: store.delete(probe),
    }
    for name, step in steps.items():
        yield _tried(name, probe, step)


def _tried(name: str, probe: S3Uri, step: Callable[[], object]) -> Finding:
    try:
        step()
    except NoSuchObject:
        text = f"{name}: there is no bucket {probe.bucket!r}, or it loses objects at once"
        return S3.error(name, text, "create the bucket, or correct TRAINWIRE_CHECKPOINT_BUCKET")
    except NotAllowed as exc:
        remedy = f"allow {_ACTIONS[name]} on {probe.bucket} ({_NEEDED_BY[name]})"
        return (S3.warning if name in {"delete", "list"} else S3.error)(name, str(exc), remedy)
    return S3.ok(name, f"{name} is allowed")


_ACTIONS: Final = {
    "put": "s3:PutObject",
    "head": "s3:GetObject",
    "read": "s3:GetObject",
    "list": "s3:ListBucket",
    "delete": "s3:DeleteObject",
}
_NEEDED_BY: Final = {
    "put": "trainers upload",
    "head": "workers verify",
    "read": "downloads",
    "list": "workers distinguish a missing object from a forbidden one",
    "delete": "CHECKPOINT_REMOVE_SUPERSEDED, CHECKPOINT_RETENTION",
}
