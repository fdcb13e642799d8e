"""The settings that `trainwire up` records, and how it finds a Loki."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.twins.loki import LokiTwin
from trainwire.stack.folders import hold, publish
from trainwire.stack.locate import adopt, locate
from trainwire.stack.persisted_config import new_password
from trainwire.stack.recorded_settings import loki_absence, recorded_settings, switch_off_absent_loki


@contextmanager
def _server(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_loki_is_recognised() -> None:
    """Loki is recognized by the build information of its API."""
    with LokiTwin() as twin:
        assert loki_absence(twin.url) is None
        url = twin.url
    assert loki_absence(url) == f"no server answers at {url}"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>a page for every path</html>"),
        (200, b'{"status": "ok"}'),
        (200, b'["version", "revision", "branch"]'),
        (200, b"x" * 100_000),
        (404, b'{"version": "3.7.6", "revision": "r", "branch": "b"}'),
        (302, b""),
    ],
)
def test_another_server_is_not_taken_for_loki(status: int, body: bytes) -> None:
    """A development server on port 3100 is not Loki, with any status or body."""
    with _server(status, body) as url:
        assert loki_absence(url) == f"the server at {url} is not Loki"


@pytest.mark.parametrize(
    "named", [{"LOKI_URL": "http://loki:3100"}, {"LOKI_ENABLED": "true"}, {"LOKI_ENABLED": "false"}]
)
def test_settings_of_the_user_stay(named: dict[str, str]) -> None:
    """Named settings are not changed by a probe: a Loki that is named may be down for now."""
    environ = dict(named)
    assert switch_off_absent_loki(environ) is None
    assert environ == named


def test_an_absent_loki_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Loki it is switched off for the whole stack, with the reason."""
    monkeypatch.setattr(
        "trainwire.stack.recorded_settings.loki_absence", lambda url: f"no server answers at {url}"
    )
    environ: dict[str, str] = {}
    assert switch_off_absent_loki(environ) == "no server answers at http://localhost:3100"
    assert environ == {"LOKI_ENABLED": "false"}


def test_commands_have_the_settings_of_the_stack(tmp_path: Path) -> None:
    """Commands use only the recorded settings, even if the environment has addresses of the stack."""
    up = {
        "JSONL_DIR": "/rows",
        "LOKI_ENABLED": "false",
        "AWS_REGION": "eu",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    passwords = [new_password(tmp_path / "a", part) for part in ("postgres", "valkey")]
    urls = {
        "database_url": f"postgresql://u:{passwords[0]}@127.0.0.1:1/d",
        "redis_url": f"redis://:{passwords[1]}@127.0.0.1:2/0",
    }
    before = {name.upper(): url.replace(":1/", ":8/").replace(":2/", ":9/") for name, url in urls.items()}
    with hold(tmp_path / "a"):
        publish(tmp_path / "a", urls | {"settings": recorded_settings(up)}, up)
        for exported in ({}, before | {"TRAINWIRE_DATA_DIR": str(tmp_path / "a")}):
            environ = {"XDG_STATE_HOME": up["XDG_STATE_HOME"], "LOKI_URL": "http://mine", "HOME": "/h", **exported}
            found = locate(None, environ)
            adopt(found.settings, environ)
            assert (found.database_url, found.redis_url) == (urls["database_url"], urls["redis_url"])
            assert {name: environ.get(name) for name in (*up, "LOKI_URL", "HOME")} == up | {
                "LOKI_URL": None,
                "HOME": "/h",
            }


def test_servers_of_the_users_own_leave_the_environment_alone(tmp_path: Path) -> None:
    """Where DATABASE_URL and REDIS_URL name other servers, the settings are those of the command's environment."""
    own = {"DATABASE_URL": "postgresql://mine", "REDIS_URL": "redis://mine", "XDG_STATE_HOME": str(tmp_path)}
    assert locate(None, own).settings == {}
