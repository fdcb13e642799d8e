"""The prefixes in S3 below which files are verified and presigned.

Messages can name any address, so without this limit a trainer could read any object through trainwire.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainwire.schemas.checkpoint_keys import SCHEME, S3Uri
from trainwire.stores.settings import StoreSettings


class NotServed(Exception):  # noqa: N818 - shown to users
    """An object lies outside of the served prefixes; the message names the bucket and the setting."""


def check_served(uri: S3Uri, settings: StoreSettings) -> None:
    """Raise `NotServed` for an address outside of the served prefixes."""
    prefixes = served_prefixes(settings)
    if not lies_in(uri, prefixes):
        raise NotServed(
            f"{uri} was named by a trainer; files are served from {shown_prefixes(prefixes)}. If all who may see "
            f"the job may have bucket {uri.bucket!r}, name it in CHECKPOINT_LEND_ALSO={SCHEME}{uri.bucket}/"
        )


def lies_in(uri: S3Uri, prefixes: Sequence[str]) -> bool:
    """Return whether the address of an object or a folder begins with one of these prefixes.

    False for a key with the segments `.` or `..`: clients and proxies normalize it to another key.
    """
    return not {".", ".."} & set(uri.key.split("/")) and any(str(uri).startswith(prefix) for prefix in prefixes)


def shown_prefixes(prefixes: Sequence[str]) -> str:
    """Return the prefixes as text."""
    return ", ".join(prefixes) or "nowhere: TRAINWIRE_CHECKPOINT_BUCKET is not set"


def served_prefixes(settings: StoreSettings) -> list[str]:
    """Return the addresses of the folder of uploads and of CHECKPOINT_LEND_ALSO, each with a slash at its end."""
    own, also = settings.trainwire_checkpoint_bucket, settings.checkpoint_lend_also
    prefixes = [prefix.strip() for prefix in also.split(",") if prefix.strip()]
    if own:
        prefixes.insert(0, f"{SCHEME}{own}/{settings.trainwire_checkpoint_prefix.strip('/')}")
    return [prefix.rstrip("/") + "/" for prefix in prefixes]
