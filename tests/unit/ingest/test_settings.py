"""The environment variables of a trainer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainwire import TrainerSettings
from trainwire.ingest.servers.server_names import shown_host
from trainwire.ingest.settings.server_addresses import checked_redis_url
from trainwire.ingest.settings.setting_groups import CheckpointSettings


def test_an_empty_environment_has_defaults() -> None:
    """Without variables a run sends to the user's own stack, and states no attempt."""
    settings = TrainerSettings.from_env({"TRAINWIRE_JOB_ID": ""})
    assert settings.streams is None
    assert (settings.job_id, settings.attempt, settings.rank) == (None, 0, None)
    assert settings.buffer_bytes == 256 * 1024 * 1024
    assert not settings.is_captured
    assert not settings.strict
    assert settings.log_lines_per_s is None


def test_everything_can_be_said() -> None:
    """Every variable is read with its type."""
    settings = TrainerSettings.from_env(
        {
            "REDIS_URL": "rediss://:secret@host:6380/1",
            "TRAINWIRE_JOB_ID": "42",
            "TRAINWIRE_ATTEMPT": "3",
            "RANK": "7",
            "TRAINWIRE_FLUSH_INTERVAL_S": "0.2",
            "TRAINWIRE_BUFFER_BYTES": "1000000",
            "TRAINWIRE_CAPTURED": "1",
            "TRAINWIRE_LOG_LINES_PER_S": "1000",
            "TRAINWIRE_STRICT": "on",
        }
    )
    assert (settings.job_id, settings.attempt, settings.rank) == (42, 3, 7)
    assert (settings.timing.flush_interval_s, settings.buffer_bytes) == (0.2, 1_000_000)
    assert settings.log_lines_per_s == 1000
    assert settings.is_captured
    assert settings.strict
    assert "secret" not in repr(settings)


def test_checkpoints_stay_where_they_are_unless_a_bucket_is_named() -> None:
    """Nothing is uploaded by default; every option of uploads can be set."""
    assert TrainerSettings.from_env({}).checkpoints == CheckpointSettings()
    said = TrainerSettings.from_env(
        {
            "TRAINWIRE_CHECKPOINT_BUCKET": "mine",
            "TRAINWIRE_CHECKPOINT_PREFIX": "/a/b/",
            "TRAINWIRE_CHECKPOINT_UPLOAD": "none",
            "TRAINWIRE_CHECKPOINT_SNAPSHOT": "link",
            "TRAINWIRE_CHECKPOINT_SPOOL": "/fast",
            "TRAINWIRE_CHECKPOINT_RETRY_S": "60",
            "TRAINWIRE_CHECKPOINT_FINISH_S": "0",
        }
    )
    assert said.checkpoints == CheckpointSettings("mine", "a/b", "none", "link", Path("/fast"), 60.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRAINWIRE_JOB_ID", "abc"),
        ("TRAINWIRE_JOB_ID", "0"),
        ("TRAINWIRE_JOB_ID", str(2**63)),
        ("TRAINWIRE_ATTEMPT", "-1"),
        ("TRAINWIRE_RANK", "1.5"),
        ("TRAINWIRE_WORLD_SIZE", "0"),
        ("TRAINWIRE_WORLD_SIZE", str(2**31)),
        ("TRAINWIRE_FLUSH_INTERVAL_S", "0"),
        ("TRAINWIRE_FLUSH_INTERVAL_S", "nan"),
        ("TRAINWIRE_SETTLE_S", "-1"),
        ("TRAINWIRE_CHECKPOINT_BUCKET", "s3://mine"),
        ("TRAINWIRE_CHECKPOINT_UPLOAD", "never"),
        ("TRAINWIRE_CHECKPOINT_SNAPSHOT", "reflink"),
        ("TRAINWIRE_CHECKPOINT_RETRY_S", "-1"),
        ("TRAINWIRE_CHECKPOINT_FINISH_S", "nan"),
        ("TRAINWIRE_BUFFER_BYTES", "12"),
        ("TRAINWIRE_LOG_LINES_PER_S", "0"),
        ("REDIS_URL", "http://host/0"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    """The error names the variable and its value."""
    with pytest.raises(ValueError, match=f"^{name}='?{value}'? is not"):
        TrainerSettings.from_env({name: value})


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://u:hush@host:port/0", "has the port 'port', which is not a number from 1 to 65535: write redis"),
        ("redis://u:hush@host:65536", "has the port '65536'"),
        ("redis://u:hush@host:0/0", "has the port '0'"),
        ("redis://[::1]:x/0", "has the port 'x'"),
        ("redis://u:hush@host/zero", "has the database 'zero', which is not a number: write redis://host:6379/0"),
        ("redis://host/0?db=x", "has the database 'x'"),
        ("redis://host/0 ", "has the database '0 '"),
        ("redis://my host/0", "has a space in its host 'my host'"),
        ("redis://u:hu/sh@host:6379/0", "has a /, ? or # before its @: write %2F, %3F or %23 for it"),
        ("redis://:hush", "names no host"),
        ("redis://", "is not a Redis address"),
        ("unix:///run/redis.sock", "is a Unix socket"),
    ],
)
@pytest.mark.parametrize("name", ["REDIS_URL", "STREAMS_URL"])
def test_the_wrong_part_of_an_address_is_named(name: str, url: str, problem: str) -> None:
    """The error has the variable, the address without its password, the part that is wrong, and the remedy."""
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        TrainerSettings.from_env({name: url})
    assert str(caught.value).startswith(f"{name}='")
    assert not re.search("hu.?sh", str(caught.value))


@pytest.mark.parametrize(
    "url", ["redis://h", "rediss://u:p@h:1/15", "redis://[::1]:65535/", "redis://:6379/0?db=2"]
)
def test_addresses_that_can_be_right_are_taken(url: str) -> None:
    """Port, database, user and TLS may be there or not."""
    assert TrainerSettings.from_env({"REDIS_URL": url}).redis_url == url


def test_a_password_is_never_shown() -> None:
    """Neither an error nor a host in a warning shows user or password."""
    with pytest.raises(ValueError, match="host") as caught:
        checked_redis_url("amqp://me:secret@host/0")
    assert "secret" not in str(caught.value)
    assert shown_host("redis://me:secret@host/0") == "host:6379"


def test_invalid_variables_are_left_out() -> None:
    """Each is one sentence; no other address is used, and nothing is sent that may have been switched off."""
    environ = {
        "TRAINWIRE_URL": "htp://host",
        "REDIS_URL": "redis://host:6379/0",
        "TRAINWIRE_PROVENANCE": "-dif",
        "TRAINWIRE_CHECKPOINT_UPLOAD": "non",
        "TRAINWIRE_HEARTBEAT_S": "5",
    }
    settings, errors = TrainerSettings.from_valid(environ)
    assert (settings.streams, settings.provenance, settings.checkpoints.upload) == (None, frozenset(), "none")
    assert settings.vitals.interval_s == 5
    assert settings == TrainerSettings.from_env(environ)
    assert [sentence.partition("=")[0] for sentence in errors] == [
        "TRAINWIRE_URL",
        "TRAINWIRE_CHECKPOINT_UPLOAD",
        "TRAINWIRE_PROVENANCE",
    ]
    assert errors[0].endswith("it is ignored: messages stay in the spool for your `trainwire up`")
