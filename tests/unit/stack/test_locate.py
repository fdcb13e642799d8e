"""How a command finds the servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwire.ingest.settings.running_stacks import StackFolders, is_held
from trainwire.stack.errors import Problem
from trainwire.stack.folders import default_data_dir, hold, publish, published, withdraw
from trainwire.stack.locate import Address, locate


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user without a running stack."""
    return {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_DATA_HOME": str(tmp_path / "data")}


def _publish(data_dir: Path, environ: dict[str, str]) -> None:
    stack = {"database_url": f"postgresql://{data_dir.name}", "redis_url": "redis://r", "flower_url": None}
    publish(data_dir, stack, environ)


def test_the_environment_goes_first(environ: dict[str, str], tmp_path: Path) -> None:
    """DATABASE_URL and REDIS_URL are used even beside a running stack."""
    named = environ | {"DATABASE_URL": "postgresql://d", "REDIS_URL": "redis://e"}
    with hold(tmp_path / "a"):
        _publish(tmp_path / "a", environ)
        assert locate(None, named) == Address("postgresql://d", "redis://e")


def test_an_explicit_folder_outranks_the_environment(environ: dict[str, str], tmp_path: Path) -> None:
    """--data-dir takes precedence over all; TRAINWIRE_DATA_DIR comes after the URLs of the environment."""
    urls = environ | {"DATABASE_URL": "postgresql://d", "REDIS_URL": "redis://e"}
    one, two = tmp_path / "one", tmp_path / "two"
    with hold(one):
        _publish(one, environ)
        for named in (urls, environ | {"REDIS_URL": "redis://e"}):
            assert locate(one, named) == Address("postgresql://one", "redis://r", None, one)
            with pytest.raises(Problem, match=f"no trainwire is running in {two}"):
                locate(two, named)
        by_variable = locate(None, urls | {"TRAINWIRE_DATA_DIR": str(one)})
    assert by_variable == Address("postgresql://d", "redis://e")


def test_the_only_running_stack_is_found(environ: dict[str, str], tmp_path: Path) -> None:
    """Without any setting the one running stack is used."""
    with hold(tmp_path / "a"):
        _publish(tmp_path / "a", environ)
        assert locate(None, environ) == Address("postgresql://a", "redis://r", None, tmp_path / "a")


def test_one_url_in_the_environment_is_filled_up_by_the_stack(environ: dict[str, str], tmp_path: Path) -> None:
    """With REDIS_URL alone the database is that of the running stack."""
    with hold(tmp_path / "a"):
        _publish(tmp_path / "a", environ)
        found = locate(None, environ | {"REDIS_URL": "redis://mine"})
    assert (found.database_url, found.redis_url) == ("postgresql://a", "redis://mine")


def test_one_url_alone_names_the_other(environ: dict[str, str]) -> None:
    """A command that needs a URL that is not set names the variable."""
    found = locate(None, environ | {"REDIS_URL": "redis://mine"})
    with pytest.raises(Problem, match="DATABASE_URL is not set"):
        found.need_database_url()


def test_two_running_stacks_ask_for_a_choice(environ: dict[str, str], tmp_path: Path) -> None:
    """With two stacks the error lists both, and --data-dir or TRAINWIRE_DATA_DIR chooses."""
    one, two = tmp_path / "one", tmp_path / "two"
    with hold(one), hold(two):
        _publish(one, environ)
        _publish(two, environ)
        with pytest.raises(Problem, match="--data-dir") as caught:
            locate(None, environ)
        assert str(one) in str(caught.value)
        assert str(two) in str(caught.value)
        assert locate(two, environ).database_url == "postgresql://two"
        assert locate(None, environ | {"TRAINWIRE_DATA_DIR": str(one)}).database_url == "postgresql://one"


def test_of_several_stacks_a_command_and_a_trainer_use_the_default_one(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """Beside a stack in another folder, the one in the default folder is used, by commands and trainers alike."""
    default, other = default_data_dir(environ), tmp_path / "a"
    with hold(default), hold(other):
        _publish(default, environ)
        _publish(other, environ)
        assert locate(None, environ).data_dir == default
        assert StackFolders.from_env(environ).find().data_dir == default


def test_no_running_stack_names_the_remedy(environ: dict[str, str], tmp_path: Path) -> None:
    """Without a running stack the error names `trainwire up` and the variables."""
    with pytest.raises(Problem, match=r"trainwire up.*DATABASE_URL and REDIS_URL"):
        locate(None, environ)
    with pytest.raises(Problem, match=f"no trainwire is running in {tmp_path}/x"):
        locate(tmp_path / "x", environ)


def test_a_killed_stack_is_not_running(environ: dict[str, str], tmp_path: Path) -> None:
    """Files of a killed `trainwire up` do not count as a running stack."""
    with hold(tmp_path / "a"):
        _publish(tmp_path / "a", environ)
    assert published(tmp_path / "a") is None
    with hold(tmp_path / "a"):
        assert published(tmp_path / "a") is None
    with pytest.raises(Problem, match="no trainwire is running"):
        locate(None, environ)


def test_a_starting_stack_asks_to_try_again(environ: dict[str, str], tmp_path: Path) -> None:
    """A stack that is not ready yet is an error that asks to try again."""
    with hold(tmp_path / "a"), pytest.raises(Problem, match="starting or stopping"):
        locate(tmp_path / "a", environ)


def test_withdrawn_stacks_are_forgotten(environ: dict[str, str], tmp_path: Path) -> None:
    """A stopped stack is not found any more."""
    with hold(tmp_path / "a"):
        _publish(tmp_path / "a", environ)
        withdraw(tmp_path / "a", environ)
        with pytest.raises(Problem, match="no trainwire is running"):
            locate(None, environ)


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    """A second owner is refused with the pid of the first; afterwards the folder is free."""
    with hold(tmp_path / "a"):
        assert is_held(tmp_path / "a")
        with pytest.raises(Problem, match=r"already in .*\(pid \d+\)"), hold(tmp_path / "a"):
            pass
    assert not is_held(tmp_path / "a")
