"""Addresses of servers that carry the streams."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from trainwire.ingest.servers.server_names import server_of, shown_host
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.schemas.streams.clients import STREAM_ERRORS, open_streams
from trainwire.schemas.streams.urls import cluster_nodes, cluster_tls, is_cluster
from trainwire.stores.settings import WrongSettings
from trainwire.workers.settings import load_settings

CLUSTER = "redis+cluster://trainer:secret@one:7000,two,[::1]:7002"
BROKER = "redis://broker:6379/0"
WRONG = [
    "redis+cluster://",
    "redis+cluster://one:7000,,two:7000",
    "redis+cluster://one:port",
    "redis+cluster://one:7000/3",
    "redis+cluster://one:7000?ssl_ca_certs=/own-ca.pem",
    "rediss+cluster://one:7000?db=1",
    "amqp://one",
]


def test_a_cluster_is_named_by_its_servers() -> None:
    """A cluster's address lists its servers with ports, 6379 by default; that of one Redis is not a cluster's."""
    assert cluster_nodes(CLUSTER) == [("one", 7000), ("two", 6379), ("::1", 7002)]
    assert is_cluster(CLUSTER)
    assert not is_cluster(BROKER)


def test_a_cluster_gets_its_ca(tmp_path: Path) -> None:
    """An address with TLS accepts redis-py's parameters; a missing file is reported before anything starts."""
    url = f"rediss+cluster://trainer:secret@one:7000,two/0?ssl_ca_certs={tmp_path}/ca.pem&ssl_check_hostname=false"
    assert cluster_nodes(url) == [("one", 7000), ("two", 6379)]
    assert cluster_tls(url) == {"ssl_ca_certs": f"{tmp_path}/ca.pem", "ssl_check_hostname": False}
    assert cluster_tls(CLUSTER) == {}
    assert shown_host(url) == "one:7000,two:6379"
    with pytest.raises(WrongSettings, match="STREAMS_URL names ssl_ca_certs, which cannot be read: ") as caught:
        load_settings(database_url="postgresql://host/db", redis_url=BROKER, streams_url=url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("rediss+cluster://one?ssl_ca=x", "has the parameter 'ssl_ca', and takes ssl_ca_certs, "),
        ("redis+cluster://one?ssl_ca_certs=x", "takes none without TLS: begin it with rediss+cluster://"),
        ("redis+cluster://one:x", "names 'one:x', which is not host:port"),
    ],
)
def test_the_wrong_part_of_a_cluster_address_is_named(url: str, why: str) -> None:
    """Trainers and workers name the wrong part of the address."""
    with pytest.raises(ValueError, match=re.escape(why)):
        TrainerSettings.from_env({"STREAMS_URL": url})
    with pytest.raises(WrongSettings, match=re.escape(why)):
        load_settings(database_url="postgresql://host/db", redis_url=BROKER, streams_url=url)


@pytest.mark.parametrize("password", ["x?secret", "secret?x", "x?secret=secret", "x?ssl_ca_certs=secret"])
def test_a_password_with_a_question_mark_is_not_repeated(password: str) -> None:
    """The text after an unescaped `?` is no parameter, and no error contains it or the text before it."""
    url = f"rediss+cluster://user:{password}@one:7000"
    with pytest.raises(ValueError, match=re.escape("write %3F")) as trainers:
        TrainerSettings.from_env({"STREAMS_URL": url})
    with pytest.raises(WrongSettings, match=re.escape("write %3F")) as workers:
        load_settings(database_url="postgresql://host/db", redis_url=BROKER, streams_url=url)
    assert "secret" not in f"{trainers.value} {workers.value}"


def test_trainers_send_to_the_streams_and_ring_at_the_broker() -> None:
    """Messages go to STREAMS_URL, which the spool records; without it to REDIS_URL."""
    both = TrainerSettings.from_env({"REDIS_URL": BROKER, "STREAMS_URL": CLUSTER})
    assert (both.redis_url, both.streams) == (BROKER, CLUSTER)
    assert TrainerSettings.from_env({"REDIS_URL": BROKER}).streams == BROKER
    assert shown_host(CLUSTER) == "one:7000,two:6379,::1:7002"
    assert server_of(CLUSTER) == "one:7000,two:6379,::1:7002/0"


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_address_is_named_without_its_password(url: str) -> None:
    """Trainers and workers refuse it before anything starts."""
    hidden = url.replace("://", "://:secret@")
    with pytest.raises(ValueError, match="STREAMS_URL") as trainers:
        TrainerSettings.from_env({"STREAMS_URL": hidden})
    with pytest.raises(WrongSettings, match="STREAMS_URL") as workers:
        load_settings(database_url="postgresql://host/db", redis_url=BROKER, streams_url=hidden)
    assert "secret" not in f"{trainers.value} {workers.value}"


def test_a_cluster_that_is_down_is_an_error_of_the_first_command() -> None:
    """A client can be created without a running cluster; the error is one of STREAM_ERRORS."""
    client = open_streams("redis+cluster://127.0.0.1:1", retry=Retry(NoBackoff(), 0), socket_connect_timeout=1)
    with pytest.raises(RedisClusterException) as error:
        client.get("ingest:shards")
    assert isinstance(error.value, STREAM_ERRORS)
    client.close()
