"""Checkpoints over HTTP: their states, and signed URLs of their files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import requests

from tests.factories import Sender, checkpoint, drain
from tests.gateway_server import GatewayServer, gateway_settings
from tests.integration.conftest import Bucket
from tests.s3 import s3_client
from trainwire.stores.settings import WrongSettings
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings

_jobs = count(9000)


@pytest.fixture
def lending(database_url: str, redis_url: str, bucket: Bucket, resources: object) -> Iterator[GatewayServer]:  # noqa: ARG001 - empties the stores
    """A gateway with the trainers' bucket in its settings."""
    with GatewayServer(
        gateway_settings(database_url, redis_url, trainwire_checkpoint_bucket=bucket.name)
    ) as server:
        yield server


def named(resources: Resources, sender: Sender, uri: str) -> str:
    """Store a checkpoint with this URI; return the path that would return its URL."""
    job = next(_jobs)
    sender.send(checkpoint(uri), job=job)
    drain(resources, "checkpoints", job)
    return f"/jobs/{job}/checkpoints/1/url"


def test_checkpoints_are_lent(
    lending: GatewayServer, resources: Resources, sender: Sender, bucket: Bucket
) -> None:
    """The list has states and marks best and last; a file can be downloaded from a signed URL."""
    job = next(_jobs)
    sender.send(checkpoint(kind="epoch", epoch=0, **bucket.put(f"checkpoints/{job}/1.pt", b"one")), job=job)
    best = bucket.put(f"checkpoints/{job}/best.pt", b"two")
    sender.send(checkpoint(**best, metrics={"loss": 0.0}), job=job)
    sender.send(checkpoint("/local/3.pt", kind="last", upload_error="disk full"), job=job)
    drain(resources, "checkpoints", job)
    items = lending.get(f"/jobs/{job}/checkpoints")["items"]
    assert [(item["seq"], item["is_best"], item["is_last"]) for item in items] == [
        (1, False, False),
        (2, True, False),
        (3, False, True),
    ]
    assert [item["state"] for item in items] == ["uploaded", "uploaded", "not uploaded"]
    assert (items[0]["epoch"], items[1]["metrics"]) == (0, {"loss": 0.0})
    for path in (f"/jobs/{job}/checkpoints/2/url", f"/checkpoints/{job}-2/url"):
        assert requests.get(lending.get(path)["url"], timeout=20).content == b"two"
    assert "disk full" in lending.get(f"/jobs/{job}/checkpoints/3/url", status=404)["detail"]
    assert lending.get(f"/jobs/{job}/checkpoints/9/url", status=404)["status"] == 404


def test_only_one_checkpoint_of_all_pages_is_the_best(
    lending: GatewayServer, resources: Resources, sender: Sender
) -> None:
    """A page of older checkpoints marks none of those that a newer one at the same path has overwritten."""
    job = next(_jobs)
    for _ in range(3):
        sender.send(checkpoint("s3://b/best.pt", is_best=True), job=job)
    drain(resources, "checkpoints", job)
    marked = []
    for page in ("", "?before=3", "?before=2"):
        items = lending.get(f"/jobs/{job}/checkpoints{page}")["items"]
        marked.append([item["seq"] for item in items if item["is_best"]])
        assert [item["seq"] for item in items if item["is_last"]] in ([], marked[-1])
    assert marked == [[3], [], []]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://salaries/2026.csv",
        "s3://{bucket}/elsewhere/2026.csv",
        "s3://{bucket}/checkpoints-of-others/1.pt",
        "s3://{bucket}-of-others/checkpoints/1.pt",
        "s3://{bucket}/checkpoints/../elsewhere/2026.csv",
        "s3://{bucket}/checkpoints/./../elsewhere/2026.csv",
        "s3://{bucket}//checkpoints/1.pt",
    ],
)
def test_a_file_outside_the_folder_is_not_signed(
    lending: GatewayServer, resources: Resources, sender: Sender, bucket: Bucket, uri: str
) -> None:
    """No URL is signed outside of the checkpoints' folder; the error names the folder and the remedy."""
    path = named(resources, sender, uri.format(bucket=bucket.name))
    job = path.split("/")[2]
    for each in (path, f"/checkpoints/{job}-1/url"):
        refused = lending.get(each, status=403)
        assert refused["type"] == "urn:trainwire:problem:not-lent"
        assert uri.format(bucket=bucket.name) in refused["detail"]
        assert f"files are served from s3://{bucket.name}/checkpoints/." in refused["detail"]
        assert "CHECKPOINT_LEND_ALSO=s3://" in refused["detail"]
        assert "url" not in refused


def test_a_gateway_without_a_bucket_lends_nothing(
    gateway: GatewayServer, resources: Resources, sender: Sender, bucket: Bucket
) -> None:
    """Without a configured bucket no URL is signed, though the keys allow it; the error names the setting."""
    bucket.put("checkpoints/1/best.pt")
    path = named(resources, sender, f"s3://{bucket.name}/checkpoints/1/best.pt")
    assert "TRAINWIRE_CHECKPOINT_BUCKET is not set" in gateway.get(path, status=403)["detail"]


def test_other_places_are_lent_from_where_they_are_named(
    session_settings: Settings, resources: Resources, sender: Sender, bucket: Bucket, s3_url: str
) -> None:
    """CHECKPOINT_LEND_ALSO allows more buckets and folders, and nothing beside them."""
    released = f"{bucket.name}-released"
    client = s3_client(s3_url)
    client.create_bucket(Bucket=released)
    client.put_object(Bucket=released, Key="models/7.pt", Body=b"seven")
    also = f"s3://{released}/models, s3://archive/"
    urls = [session_settings.database_url.get_secret_value(), session_settings.redis_url.get_secret_value()]
    settings = gateway_settings(*urls, trainwire_checkpoint_bucket=bucket.name, checkpoint_lend_also=also)
    with GatewayServer(settings) as server:
        path = named(resources, sender, f"s3://{released}/models/7.pt")
        assert requests.get(server.get(path)["url"], timeout=20).content == b"seven"
        assert server.get(named(resources, sender, "s3://archive/2026/1.pt"))["url"]
        detail = server.get(named(resources, sender, f"s3://{released}/models-to-be/7.pt"), status=403)["detail"]
        assert f"s3://{bucket.name}/checkpoints/, s3://{released}/models/, s3://archive/" in detail


def test_files_are_lent_at_the_address_that_browsers_reach(
    resources: Resources,
    sender: Sender,
    bucket: Bucket,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """URLs are signed for the store's address that browsers can reach."""
    s3_client(s3_url).put_object(Bucket=bucket.name, Key="checkpoints/7.pt", Body=b"seven")
    path = named(resources, sender, f"s3://{bucket.name}/checkpoints/7.pt")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://inside.invalid:8333")
    urls = [resources.settings.database_url.get_secret_value(), resources.settings.redis_url.get_secret_value()]
    settings = gateway_settings(*urls, trainwire_checkpoint_bucket=bucket.name, gateway_s3_url=s3_url)
    with GatewayServer(settings) as server:
        assert requests.get(server.get(path)["url"], timeout=20).content == b"seven"


@pytest.mark.parametrize("wrong", ["archive", "s3://", "s3:///models", "s3://a/, https://b/"])
def test_a_place_that_is_none_is_named_at_the_start(database_url: str, redis_url: str, wrong: str) -> None:
    """A gateway with an ambiguous CHECKPOINT_LEND_ALSO does not start."""
    with pytest.raises(WrongSettings, match=r"CHECKPOINT_LEND_ALSO names .*, which is no place like s3://bucket/"):
        gateway_settings(database_url, redis_url, checkpoint_lend_also=wrong)
