"""The five requests of an upload to S3 or a compatible store, and the translation of their errors."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError

from trainwire.ingest.uploads.retry import StoreUnavailable
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.schemas.streams.tls import s3_trouble

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 60
CONNECTIONS: Final = 8

_RETRYABLE: Final = frozenset({"BadDigest", "RequestTimeout", "RequestTimeTooSkewed", "SlowDown"})
"""Codes of 4xx errors after which the same request may succeed (S3 API reference, "Error responses")."""
_NO_UPLOAD: Final = "NoSuchUpload"
_TOO_MANY: Final = 429
_SERVER_FAULT: Final = 500
_CONNECTION_ERRORS: Final = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    ResponseParserError,
)
"""The errors that boto3 raises if the connection to the store fails."""

Digest: TypeAlias = bytes
"""A SHA-256 as 32 bytes."""


class StoreRefused(Exception):  # noqa: N818 - named after its message
    """The store refuses the request, and retries cannot succeed; the message is the reason."""


class UploadForgotten(Exception):  # noqa: N818 - named after its message
    """The store no longer has the multipart upload, which must be started again."""


class UploadedPart(NamedTuple):
    """A part of a multipart upload that the store has accepted."""

    number: int
    etag: str
    digest: Digest


class ObjectStore:
    """Writes objects, and compares their SHA-256 with the one that the store returns. Thread-safe.

    A failed request raises `StoreUnavailable`, `StoreRefused` or `UploadForgotten`.
    """

    def __init__(self) -> None:
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"total_max_attempts": 1},  # UploadRetry retries, and logs it
            max_pool_connections=CONNECTIONS,
        )
        with _translated("the settings of boto3 (AWS_*)"):
            self._client: S3Client = boto3.session.Session().client("s3", config=config)

    def put(self, uri: S3Uri, data: bytes) -> str:
        """Write an object in one request; return its checksum in base64, as S3 does."""
        ours = encoded(hashlib.sha256(data).digest())
        with _translated(f"{uri}"):
            answer = self._client.put_object(
                Bucket=uri.bucket, Key=uri.key, Body=data, ChecksumAlgorithm="SHA256", ChecksumSHA256=ours
            )
        return _checked(uri, ours, answer.get("ChecksumSHA256"))

    def begin(self, uri: S3Uri) -> str:
        """Start a multipart upload and return its id."""
        with _translated(f"{uri}"):
            answer = self._client.create_multipart_upload(
                Bucket=uri.bucket, Key=uri.key, ChecksumAlgorithm="SHA256"
            )
        return answer["UploadId"]

    def put_part(self, uri: S3Uri, upload_id: str, number: int, data: bytes) -> UploadedPart:
        """Write one part of a multipart upload; parts are numbered from 1."""
        digest = hashlib.sha256(data).digest()
        with _translated(f"part {number} of {uri}"):
            answer = self._client.upload_part(
                Bucket=uri.bucket,
                Key=uri.key,
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=encoded(digest),
            )
        _checked(uri, encoded(digest), answer.get("ChecksumSHA256"))
        return UploadedPart(number, answer["ETag"], digest)

    def complete(self, uri: S3Uri, upload_id: str, parts: Sequence[UploadedPart]) -> str:
        """Complete a multipart upload; return the checksum of the object, as S3 does (see `composite`)."""
        with _translated(f"{uri}"):
            answer = self._client.complete_multipart_upload(
                Bucket=uri.bucket,
                Key=uri.key,
                UploadId=upload_id,
                MultipartUpload={
                    "Parts": [
                        {"PartNumber": part.number, "ETag": part.etag, "ChecksumSHA256": encoded(part.digest)}
                        for part in parts
                    ]
                },
            )
        return _checked(uri, composite([part.digest for part in parts]), answer.get("ChecksumSHA256"))

    def abort(self, uri: S3Uri, upload_id: str) -> None:
        """Delete the uploaded parts: they cost money as long as the store keeps them."""
        with _translated(f"{uri}"):
            self._client.abort_multipart_upload(Bucket=uri.bucket, Key=uri.key, UploadId=upload_id)


def encoded(digest: Digest) -> str:
    """Return a SHA-256 in base64, as S3 does."""
    return base64.b64encode(digest).decode()


def composite(digests: Sequence[Digest]) -> str:
    """Return a multipart object's checksum as S3 makes it: SHA-256 of the parts' digests, then `-<part count>`."""
    return f"{encoded(hashlib.sha256(b''.join(digests)).digest())}-{len(digests)}"


def _checked(uri: S3Uri, ours: str, theirs: str | None) -> str:
    """Return `theirs`, the checksum from the store, or `ours` if it is absent.

    Raises `StoreUnavailable` if they differ. The number of parts is ignored, because some S3-compatible servers
    leave it out.
    """
    if theirs is not None and theirs.partition("-")[0] != ours.partition("-")[0]:
        raise StoreUnavailable(f"{uri} arrived damaged: its SHA-256 is {theirs} there and {ours} here")
    return theirs or ours


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except boto.ClientError as exc:
        raise _meaning(what, exc) from exc
    except _CONNECTION_ERRORS as exc:
        raise StoreUnavailable(f"{what}: {s3_trouble(exc)}") from exc
    except (boto.BotoCoreError, ValueError) as exc:
        raise StoreRefused(f"{what}: {exc}") from exc


def _meaning(what: str, exc: boto.ClientError) -> Exception:
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    error = exc.response.get("Error", {})
    code, message = error.get("Code", ""), error.get("Message", "")
    text = f"{what}: {status} {code} {message}"
    if code == _NO_UPLOAD:
        return UploadForgotten(text)
    if status == _TOO_MANY or status >= _SERVER_FAULT or code in _RETRYABLE:
        return StoreUnavailable(text)
    return StoreRefused(f"{text}; check the bucket's name, the credentials and what they allow")
