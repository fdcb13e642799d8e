"""Restricts the files that trainwire verifies or presigns to configured S3 prefixes.

Messages can contain any URI, so without this restriction a trainer could read any object through trainwire.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainwire.schemas.checkpoint_keys import SCHEME, S3Uri
from trainwire.stores.settings import StoreSettings


class NotServed(Exception):  # noqa: N818 - shown to users
    """The object is outside of the allowed prefixes; the error text names the setting that would allow it."""


def check_served(uri: S3Uri, settings: StoreSettings) -> None:
    """Raise `NotServed` if `uri` is outside of the prefixes that the settings allow."""
    prefixes = served_prefixes(settings)
    if not lies_in(uri, prefixes):
        raise NotServed(
            f"{uri} was named by a trainer; files are served from {shown_prefixes(prefixes)}. If all who may see "
            f"the job may have bucket {uri.bucket!r}, name it in CHECKPOINT_LEND_ALSO={SCHEME}{uri.bucket}/"
        )


def lies_in(uri: S3Uri, prefixes: Sequence[str]) -> bool:
    """Return whether `uri` begins with one of `prefixes`.

    False for a key with a segment `.` or `..`, because clients and proxies normalize it to another key.
    """
    return not {".", ".."} & set(uri.key.split("/")) and any(str(uri).startswith(prefix) for prefix in prefixes)


def shown_prefixes(prefixes: Sequence[str]) -> str:
    """Return the allowed prefixes as text for an error message; without any, the setting that would allow one."""
    return ", ".join(prefixes) or "no bucket: TRAINWIRE_CHECKPOINT_BUCKET is not set"


def served_prefixes(settings: StoreSettings) -> list[str]:
    """Return the allowed URI prefixes, each with a final slash.

    They are the upload folder, if a bucket is set, and those in CHECKPOINT_LEND_ALSO.
    """
    own, also = settings.trainwire_checkpoint_bucket, settings.checkpoint_lend_also
    prefixes = [prefix.strip() for prefix in also.split(",") if prefix.strip()]
    if own:
        prefixes.insert(0, f"{SCHEME}{own}/{settings.trainwire_checkpoint_prefix.strip('/')}")
    return [prefix.rstrip("/") + "/" for prefix in prefixes]
