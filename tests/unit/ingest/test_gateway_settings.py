"""The address and the token of a gateway in a trainer's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwire import Run, TrainerSettings
from trainwire.cli.commands.up import sending_from_elsewhere
from trainwire.ingest.pickling import restored
from trainwire.ingest.sending.transports.gateway_connection import is_readable_on_the_way
from trainwire.ingest.servers.destinations import NamedServer, destination_of, page_url_of, variables_of
from trainwire.ingest.servers.server_names import public_address, server_of, shown_server
from trainwire.ingest.settings.server_addresses import checked_url

URL = "https://trainwire.example/team"


def settings(**environ: str) -> TrainerSettings:
    """Return the settings of an environment that names a gateway."""
    return TrainerSettings.from_env({"TRAINWIRE_URL": URL, "TRAINWIRE_TOKEN": " tw_x\n", **environ})


def test_the_gateway_goes_first() -> None:
    """TRAINWIRE_URL is used beside REDIS_URL and STREAMS_URL, with the token, which is shown nowhere."""
    found = settings(REDIS_URL="redis://h:1/0", STREAMS_URL="redis://s:1/0")
    destination = destination_of(found)
    assert isinstance(destination, NamedServer)
    assert (destination.locate(), destination.token, destination.server) == (URL, "tw_x", URL)
    assert page_url_of(found) == URL
    assert "tw_x" not in repr(found)
    assert variables_of(found) == {"TRAINWIRE_URL": URL, "REDIS_URL": "redis://h:1/0"}


def test_an_argument_goes_before_the_environment(tmp_path: Path) -> None:
    """`redis_url` and `data_dir` replace TRAINWIRE_URL, also for child processes; `url` replaces the others."""
    to_redis = settings().at("redis://h:1/0")
    assert destination_of(to_redis).locate() == "redis://h:1/0"
    assert destination_of(to_redis).token is None
    assert variables_of(to_redis) == {"TRAINWIRE_URL": None, "REDIS_URL": "redis://h:1/0"}
    to_stack = settings(XDG_STATE_HOME=str(tmp_path)).at_stack(tmp_path)
    assert variables_of(to_stack)["TRAINWIRE_URL"] is None
    to_gateway = TrainerSettings(redis_url="redis://h:1/0").at(None, "http://localhost:8800")
    assert destination_of(to_gateway).locate() == "http://localhost:8800"
    with pytest.raises(ValueError, match="are both given: leave one out"):
        TrainerSettings().at("redis://h:1/0", URL)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://h:1/0", "is not the address of a gateway: write https://host .* REDIS_URL"),
        ("host:8800", "is not the address of a gateway"),
        ("https://", "has no host"),
        ("https://ho st", "has no host, or a space"),
        ("https://host:0", "has the port '0'"),
        ("https://host:http", "has the port 'http'"),
        ("https://user:secret@host", "write the token into TRAINWIRE_TOKEN"),
        ("https://host/#/jobs/42", "has a # part"),
        ("https://host/?token=secret", "has the parameter 'token'"),
        ("http://host/?ssl_ca_certs=/ca.pem", "with https://"),
        ("https://[::1", "is not an address"),
    ],
)
def test_a_wrong_address_is_named(url: str, text: str) -> None:
    """The error has the variable, the value without secrets, and the form."""
    with pytest.raises(ValueError, match=f"^TRAINWIRE_URL=.*{text}") as failed:
        TrainerSettings.from_env({"TRAINWIRE_URL": url})
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("token", ["tw_a b", "tw_ä", "tw_a\r\nHost: x"])
def test_a_token_that_is_none_is_not_shown(token: str) -> None:
    """A token with other characters, which could end a header, is refused without its text."""
    with pytest.raises(ValueError, match="TRAINWIRE_TOKEN is no token") as failed:
        TrainerSettings.from_env({"TRAINWIRE_TOKEN": token})
    assert token[3:] not in str(failed.value)


def test_addresses_of_one_gateway_are_one_server() -> None:
    """In the spool it has one name, whatever the case, the usual port, the slash at the end and the parameters."""
    for url in ("https://Host/", "HTTPS://host:443", "https://host/?ssl_ca_certs=/ca.pem"):
        assert server_of(checked_url(url)) == "https://host"
        assert shown_server(url) == "https://host"
    assert server_of("http://[::1]:8800/a/") == "http://[::1]:8800/a"
    assert public_address("https://host?ssl_ca_certs=/ca.pem") == "https://host?ssl_ca_certs=/ca.pem"


def test_a_pickle_leads_to_the_same_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process the run of a pickle sends to its gateway, with the token of that process."""
    monkeypatch.setenv("REDIS_URL", "redis://h:1/0")
    monkeypatch.setenv("TRAINWIRE_TOKEN", "tw_here")
    handle = {
        "token": "elsewhere",
        "job_id": 9_001,
        "attempt": 1,
        "rank": 0,
        "started_at": 1,
        "is_captured": False,
    }
    run = restored(Run, {**handle, "address": URL})
    destination = run._session.destination
    assert (destination.locate(), destination.token) == (URL, "tw_here")
    run.finish(timeout_s=0)


def test_a_token_that_is_readable_on_the_way() -> None:
    """Plain HTTP to another machine is warned about."""
    assert is_readable_on_the_way("http://host:8800")
    assert not any(map(is_readable_on_the_way, (URL, "http://localhost:8800", "http://[::1]:8800")))


def test_other_machines_get_an_address_if_they_can_reach_it() -> None:
    """`trainwire up` prints what to export where the gateway listens beyond loopback."""
    url = "http://127.0.0.1:8800"
    assert sending_from_elsewhere(url, "127.0.0.1") is None
    assert "TRAINWIRE_URL=http://10.0.0.7:8800 " in (sending_from_elsewhere(url, "10.0.0.7") or "")
    assert "0.0.0.0" not in (sending_from_elsewhere(url, "0.0.0.0") or "0.0.0.0")
