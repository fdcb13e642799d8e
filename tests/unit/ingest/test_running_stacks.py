"""Which `trainwire up` a trainer finds, and which it must not use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from trainwire.ingest.servers.destinations import (
    ANY_STACK,
    NamedServer,
    OwnStack,
    destination_of,
    name_of,
    variables_of,
)
from trainwire.ingest.servers.outage import NoServer
from trainwire.ingest.settings.running_stacks import NoStack, StackFolders, running_record
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.stack.folders import hold, publish
from trainwire.stack.persisted_config import new_password

Start = Callable[..., Path]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user without a running stack."""
    return {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_DATA_HOME": str(tmp_path / "data")}


@pytest.fixture
def start(environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Return a function that makes this process hold and publish a stack in a folder of that name."""
    with ExitStack() as held:

        def started(name: str, port: int = 7001, **addresses: str) -> Path:
            folder = tmp_path / name
            held.enter_context(hold(folder))
            publish(folder, {"redis_url": f"redis://:pw@127.0.0.1:{port}/0", **addresses}, environ)
            return folder

        yield started


def test_the_only_stack_is_found(environ: dict[str, str], start: Start) -> None:
    """Without any setting, a run sends to the stack that runs."""
    folder = start("a")
    settings = TrainerSettings.from_env(environ)
    found = destination_of(settings)
    assert (found.locate(), found.server) == ("redis://:pw@127.0.0.1:7001/0", name_of(folder))
    assert variables_of(settings) == {
        "REDIS_URL": "redis://:pw@127.0.0.1:7001/0",
        "STREAMS_URL": None,
        "TRAINWIRE_URL": None,
        "TRAINWIRE_DATA_DIR": str(folder),
    }


def test_named_addresses_go_first(environ: dict[str, str], start: Start) -> None:
    """REDIS_URL and STREAMS_URL are used beside a running stack; STREAMS_URL of the stack where it is used."""
    start("a", streams_url="redis://streams:1/0")
    for name in ("REDIS_URL", "STREAMS_URL"):
        found = destination_of(TrainerSettings.from_env(environ | {name: "redis://h:1/2"}))
        assert isinstance(found, NamedServer)
        assert (found.locate(), found.server) == ("redis://h:1/2", "h:1/2")
    assert destination_of(TrainerSettings.from_env(environ)).locate() == "redis://streams:1/0"


def test_of_several_stacks_the_default_or_the_chosen_one(
    environ: dict[str, str], start: Start, tmp_path: Path
) -> None:
    """TRAINWIRE_DATA_DIR chooses, else the default folder; where neither does, the sentence names both."""
    one, two = start("one", 7001), start("two", 7002)
    with pytest.raises(NoStack, match="more than one trainwire is running") as several:
        StackFolders.from_env(environ).find()
    assert str(one) in str(several.value)
    assert str(two) in str(several.value)
    assert StackFolders.from_env(environ | {"TRAINWIRE_DATA_DIR": str(two)}).find().data_dir == two
    default = start("data/trainwire", 7003)
    assert default == StackFolders.from_env(environ).default
    assert StackFolders.from_env(environ).find().data_dir == default
    other = environ | {"TRAINWIRE_DATA_DIR": str(tmp_path / "none")}
    with pytest.raises(NoStack, match="no trainwire is running in"):
        StackFolders.from_env(other).find()


def test_a_stack_once_found_stays_the_one(environ: dict[str, str], start: Start, tmp_path: Path) -> None:
    """A run does not go on in another stack when its own has stopped; on its new port it is found again."""
    with hold(tmp_path / "a"):
        publish(tmp_path / "a", {"redis_url": "redis://127.0.0.1:1/0"}, environ)
        found = destination_of(TrainerSettings.from_env(environ))
        assert found.locate() == "redis://127.0.0.1:1/0"
    start("b")
    with pytest.raises(NoServer):
        found.locate()
    assert found.server == name_of(tmp_path / "a")
    start("a", 7009)
    assert found.locate() == "redis://:pw@127.0.0.1:7009/0"


def test_an_exported_address_is_its_stack_on_whatever_port(
    environ: dict[str, str], start: Start, tmp_path: Path
) -> None:
    """REDIS_URL from `trainwire env` leads to the stack with this password; the same port alone does not."""
    password = new_password(tmp_path / "a", "valkey")
    exported = environ | {
        "REDIS_URL": f"redis://:{password}@127.0.0.1:1/0",
        "TRAINWIRE_DATA_DIR": str(tmp_path / "a"),
    }
    found = destination_of(TrainerSettings.from_env(exported))
    assert isinstance(found, OwnStack)
    with pytest.raises(NoServer):
        found.locate()
    start("a", 7009)
    assert found.locate() == "redis://:pw@127.0.0.1:7009/0"
    foreign = environ | {"REDIS_URL": "redis://:other@127.0.0.1:7009/0"}
    assert isinstance(destination_of(TrainerSettings.from_env(foreign)), NamedServer)


def test_without_a_stack_one_sentence_names_the_command(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged once, by rank 0 and not by a launched training; the spool keeps what any stack may take."""
    settings = TrainerSettings.from_env(environ | {"TRAINWIRE_SPOOL_DIR": str(tmp_path)})
    found = destination_of(settings)
    with pytest.raises(
        NoServer, match=f"no trainwire is running: this run is kept in {tmp_path}; type `"
    ) as first:
        found.locate()
    with pytest.raises(NoServer) as second:
        found.locate()
    assert (first.value.is_logged, second.value.is_logged) == (False, True)
    assert f"TRAINWIRE_SPOOL_DIR={tmp_path} trainwire up`, now or later" in str(first.value)
    usual = environ | {"HOME": str(tmp_path)}
    monkeypatch.setenv("XDG_STATE_HOME", usual["XDG_STATE_HOME"])
    with pytest.raises(NoServer, match="type `trainwire up`, now or later"):
        destination_of(TrainerSettings.from_env(usual)).locate()
    assert found.server == ANY_STACK
    for quiet in (replace(settings, rank=1), replace(settings, is_captured=True)):
        with pytest.raises(NoServer) as silent:
            destination_of(quiet).locate()
        assert silent.value.is_logged


def test_a_starting_stack_is_not_ready(environ: dict[str, str]) -> None:
    """Between its lock and its record the sentence does not claim that nothing runs."""
    with hold(StackFolders.from_env(environ).default), pytest.raises(NoStack, match="is not ready"):
        StackFolders.from_env(environ).find()


def _rewritten(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "stack.json").read_text())
    record["process"] |= changes
    (folder / "stack.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "changes",
    [
        {"started": 1},  # the number of the process is another one's by now
        {"pid": 2**22 + 1},
        {"boot": "of another machine that shares the home folder"},
        {"network": "net:[1]"},  # of a container, whose loopback is another
    ],
)
def test_a_record_of_another_process_is_stale(
    environ: dict[str, str], start: Start, changes: dict[str, object]
) -> None:
    """Even while something holds the lock."""
    folder = start("a")
    _rewritten(folder, **changes)
    assert running_record(folder) is None
    with pytest.raises(NoStack):
        StackFolders.from_env(environ).find()


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
@pytest.mark.parametrize("which", ["record", "entry"])
def test_a_file_that_others_can_change_is_not_read(
    environ: dict[str, str], start: Start, mode: int, which: str
) -> None:
    """A record or an entry of the registry that a group or everybody can write."""
    folder = start("a")
    (entry,) = StackFolders.from_env(environ).registry.iterdir()
    (folder / "stack.json" if which == "record" else entry).chmod(mode)
    with pytest.raises(NoStack):
        StackFolders.from_env(environ).find()


@pytest.mark.parametrize("which", ["record", "entry"])
def test_a_symbolic_link_is_not_followed(environ: dict[str, str], start: Start, which: str) -> None:
    """A link in the place of a record or an entry leads nowhere."""
    folder = start("a")
    (entry,) = StackFolders.from_env(environ).registry.iterdir()
    path = folder / "stack.json" if which == "record" else entry
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(NoStack):
        StackFolders.from_env(environ).find()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_does_not_find_it(environ: dict[str, str], start: Start, tmp_path: Path) -> None:
    """A process of another user that has inherited the environment, and can read everything, finds no stack."""
    folder = start("a")
    for path in (*tmp_path.parents, *tmp_path.rglob("*"), tmp_path):
        if str(path).startswith(str(tmp_path.parents[1])):
            path.chmod(0o755 if path.is_dir() else 0o644)
    code = (
        "import os, sys; from trainwire.ingest.settings.running_stacks import *; os.setuid(65534)\n"
        "print(running_record(Path(sys.argv[1])), list(StackFolders.from_env().registered()))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=environ
    )
    assert asked.stdout == "None []\n"
    assert StackFolders.from_env(environ).find().data_dir == folder


def test_broken_files_are_ignored(environ: dict[str, str], start: Start) -> None:
    """No JSON, JSON of another form, and an entry that names no folder end in the same sentence."""
    folder = start("a")
    registry = StackFolders.from_env(environ).registry
    (registry / ("0" * 16)).write_text("")
    (registry / ("1" * 16)).write_text("/none\0")
    (registry / ("2" * 16)).mkdir()
    assert StackFolders.from_env(environ).find().data_dir == folder
    for text in ("", "[]", '{"process": 1}', '{"process": {"pid": "1"}}', "\udc80"):
        (folder / "stack.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(NoStack):
            StackFolders.from_env(environ).find()
