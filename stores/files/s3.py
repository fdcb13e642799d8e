"""A client for S3-compatible object stores, with timeouts and its own exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.schemas.streams.tls import s3_trouble

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT_S: Final = 3
READ_TIMEOUT_S: Final = 10
TRIES: Final = 2
CONNECTIONS: Final = 16
READ_BYTES: Final = 1024 * 1024
MAX_PRESIGN_S: Final = 7 * 24 * 3600
"""Longest validity of a presigned URL with AWS Signature Version 4, in seconds."""

_NOT_FOUND: Final = 404
_TOO_MANY: Final = 429
_SERVER_FAULT: Final = 500
_CREDENTIALS: Final = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with AWS_PROFILE"


class S3Unavailable(Exception):  # noqa: N818 - a state
    """The object store does not respond, or reports an overload or a fault of its own; a later retry may succeed.

    Also raised if there are no credentials or the AWS settings are invalid.
    """


class NoSuchObject(LookupError):  # noqa: N818 - shown to users
    """The object or its bucket does not exist, or its address is not valid in S3."""


class NotAllowed(Exception):  # noqa: N818 - shown to users
    """The object store rejects the request, for example because of credentials, permissions or another region."""


class ObjectHead(NamedTuple):
    """The size of an object, and its SHA-256 in base64 as S3 reports it, if the store has one."""

    size_bytes: int
    checksum: str | None


class StoredObject(NamedTuple):
    """The URI of an object, and the time of its last write by the store's clock."""

    uri: S3Uri
    written_at: datetime


class OpenUpload(NamedTuple):
    """A multipart upload that was neither completed nor aborted, with its start time by the store's clock."""

    uri: S3Uri
    began_at: datetime
    upload_id: str


class S3Store:
    """Operations on one object store. Thread-safe; all methods raise the exceptions of this module."""

    def __init__(self, client: S3Client) -> None:
        self._client = client

    def head(self, uri: S3Uri) -> ObjectHead:
        """Return the size and checksum of an object."""
        with _errors(uri):
            answer = self._client.head_object(Bucket=uri.bucket, Key=uri.key, ChecksumMode="ENABLED")
        return ObjectHead(answer["ContentLength"], answer.get("ChecksumSHA256"))

    def has_any(self, folder: S3Uri) -> bool:
        """Return whether the object store has at least one object whose key begins with that of `folder`."""
        with _errors(folder):
            answer = self._client.list_objects_v2(Bucket=folder.bucket, Prefix=folder.key, MaxKeys=1)
        return answer["KeyCount"] > 0

    def objects(self, folder: S3Uri) -> Iterator[StoredObject]:
        """Yield the objects in `folder` and its subfolders, in the order of their keys."""
        with _errors(folder):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=folder.bucket, Prefix=folder.key):
                for found in page.get("Contents", []):
                    yield StoredObject(S3Uri(folder.bucket, found["Key"]), found["LastModified"])

    def open_uploads(self, folder: S3Uri) -> Iterator[OpenUpload]:
        """Yield the multipart uploads in the folder that were neither completed nor aborted."""
        with _errors(folder):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=folder.bucket, Prefix=folder.key):
                for found in page.get("Uploads", []):
                    uri = S3Uri(folder.bucket, found["Key"])
                    yield OpenUpload(uri, found["Initiated"], found["UploadId"])

    def abort(self, upload: OpenUpload) -> None:
        """Abort a multipart upload and delete its parts; not an error if it does not exist."""
        uri = upload.uri
        with suppress(NoSuchObject), _errors(uri):
            self._client.abort_multipart_upload(Bucket=uri.bucket, Key=uri.key, UploadId=upload.upload_id)

    def read(self, uri: S3Uri) -> Iterator[bytes]:
        """Yield the content of an object in chunks of at most READ_BYTES."""
        with _errors(uri):
            body = self._client.get_object(Bucket=uri.bucket, Key=uri.key)["Body"]
            try:
                yield from body.iter_chunks(READ_BYTES)
            finally:
                body.close()

    def put(self, uri: S3Uri, body: bytes) -> None:
        """Write an object in one request."""
        with _errors(uri):
            self._client.put_object(Bucket=uri.bucket, Key=uri.key, Body=body)

    def delete(self, uri: S3Uri) -> None:
        """Delete an object; not an error if it does not exist."""
        with _errors(uri):
            self._client.delete_object(Bucket=uri.bucket, Key=uri.key)

    def presign(self, uri: S3Uri, expires_s: int) -> str:
        """Return a URL from which anyone can download the object for `expires_s` seconds.

        The object may not exist, since the URL is computed without a request. Object stores reject URLs that are
        valid for longer than MAX_PRESIGN_S.
        """
        with _errors(uri):
            names = {"Bucket": uri.bucket, "Key": uri.key}
            return self._client.generate_presigned_url("get_object", Params=names, ExpiresIn=expires_s)


def open_s3(url: str | None = None) -> S3Store:
    """Return the store at the endpoint `url`, by default that of the AWS variables such as AWS_ENDPOINT_URL.

    Sends no request. Raises `S3Unavailable` if the AWS settings or the URL are invalid.
    """
    import boto3  # noqa: PLC0415 - takes a quarter of a second, and few processes use an object store
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        max_pool_connections=CONNECTIONS,
        signature_version="s3v4",
        # Not every S3-compatible server supports the newer checksums; we check the SHA-256 ourselves.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return S3Store(boto3.session.Session().client("s3", endpoint_url=url, config=config))
    except (BotoCoreError, ValueError) as exc:
        raise S3Unavailable(f"S3 cannot be reached with the AWS variables as they are set: {exc}") from exc


@contextmanager
def _errors(uri: S3Uri) -> Iterator[None]:
    """Translate botocore's exceptions in the block into those of this module."""
    from botocore.exceptions import (  # noqa: PLC0415 - as in `open_s3`
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
    )

    try:
        yield
    except ParamValidationError as exc:
        raise NoSuchObject(f"{uri} is not an address that S3 could have") from exc
    except NoCredentialsError as exc:
        raise S3Unavailable(f"S3: no credentials: {_CREDENTIALS}") from exc
    except BotoCoreError as exc:
        raise S3Unavailable(f"S3: {s3_trouble(exc)}") from exc
    except ClientError as exc:
        raise _translated(uri, exc) from exc


def _translated(uri: S3Uri, exc: ClientError) -> Exception:
    status = exc.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    error = exc.response.get("Error", {})
    code, message = error.get("Code", ""), error.get("Message", "")
    answer = f"{status} {message}" if code in {"", str(status)} else f"{status} {code}: {message}"
    if status == _NOT_FOUND:
        return NoSuchObject(f"{uri} is not there")
    if status == _TOO_MANY or status >= _SERVER_FAULT:
        return S3Unavailable(f"S3 answered {answer}")
    return NotAllowed(f"S3 answered {answer} for {uri}: check the credentials, what they allow, and the region")
