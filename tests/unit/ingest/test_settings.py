"""What the environment may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwire import TrainerSettings
from trainwire.ingest.settings import CheckpointSettings, checked_redis_url, shown_host


def test_an_empty_environment_has_defaults() -> None:
    """Without variables a run goes to the user's own stack, and names no attempt."""
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
    """Nothing is uploaded by default; every word of the upload can be said."""
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
        ("REDIS_URL", "redis://host:port/0"),
        ("REDIS_URL", "redis://host/zero"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    """The error names the variable and its value."""
    with pytest.raises(ValueError, match=f"^{name}='?{value}'? is not"):
        TrainerSettings.from_env({name: value})


def test_a_password_is_never_shown() -> None:
    """Neither an error nor a host in a warning shows user or password."""
    with pytest.raises(ValueError, match="host") as caught:
        checked_redis_url("amqp://me:secret@host/0")
    assert "secret" not in str(caught.value)
    assert shown_host("redis://me:secret@host/0") == "host:6379"
