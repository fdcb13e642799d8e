"""An object store over HTTP for integration tests."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pytest
from botocore.exceptions import ClientError
from botocore.loaders import JSONFileLoader

from tests.s3 import s3_client, s3_environment, s3_server
from trainwire.schemas.checkpoint_keys import ManifestFile, S3Uri, encode_manifest

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

SECRETS: Final = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")


class Bucket:
    """An empty bucket, and the records that a trainer would make of the objects put into it."""

    def __init__(self, client: S3Client) -> None:
        self.client = client
        self.name = f"trainwire-{secrets.token_hex(6)}"
        client.create_bucket(Bucket=self.name)

    def put(self, key: str, data: bytes = b"weights") -> dict[str, Any]:
        """Upload a file; return the fields of its checkpoint message."""
        answer = self.client.put_object(Bucket=self.name, Key=key, Body=data, ChecksumAlgorithm="SHA256")
        return {
            "uri": str(S3Uri(self.name, key)),
            "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "store_checksum": answer["ChecksumSHA256"],
        }

    def put_folder(self, key: str, **files: bytes) -> dict[str, Any]:
        """Upload a folder, its manifest last; return the fields of its checkpoint message."""
        listed = []
        for path, data in files.items():
            fields = self.put(f"{key}{path}", data)
            listed.append(ManifestFile(path=path, **{name: fields[name] for name in fields if name != "uri"}))
        fields = self.put(f"{key}manifest.json", encode_manifest(listed))
        return fields | {"uri": str(S3Uri(self.name, key)), "size_bytes": sum(map(len, files.values()))}

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client.delete_object(Bucket=self.name, Key=key)

    def has(self, key: str) -> bool:
        """Return whether an object is there."""
        try:
            self.client.head_object(Bucket=self.name, Key=key)
        except ClientError:
            return False
        return True

    def forbid(self, prefix: str, *actions: str) -> None:
        """Have the store answer 403 to all requests below a prefix."""
        policy = (
            '{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", "Action": ['
            + ", ".join(f'"{action}"' for action in actions)
            + f'], "Resource": "arn:aws:s3:::{self.name}/{prefix}*"}}]}}'
        )
        self.client.put_bucket_policy(Bucket=self.name, Policy=policy)

    def allow(self) -> None:
        """Remove the refusals."""
        self.client.delete_bucket_policy(Bucket=self.name)


@pytest.fixture(scope="session", autouse=True)
def _parsed_once() -> Iterator[None]:
    """botocore parses its descriptions of S3 once: for each client it takes more CPU time than most tests."""
    load = JSONFileLoader().load_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", staticmethod(cache(load)))
        yield


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 server of this test process."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket, on the server that the AWS variables name during the test."""
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_environment(s3_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Bucket(s3_client(s3_url))
