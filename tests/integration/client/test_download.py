"""Downloads of checkpoint files by the client that fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainwire.client.download import fetch
from trainwire.client.errors import ClientError
from trainwire.client.records import CheckpointInfo

UNCHECKED = CheckpointInfo(seq=1, attempt=1, ts=0, checkpoint_kind="best", uri="s3://bucket/best.pt", state="")


class _Store(BaseHTTPRequestHandler):
    """Sends half of a file and closes the connection; knows no other path."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/half" else 404)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"w" * 500)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def store() -> Iterator[str]:
    """The address of an object store whose answers are wrong."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "reason"), [("/half", "IncompleteRead"), ("/none", "404")])
def test_a_download_that_fails_leaves_nothing(store: str, tmp_path: Path, path: str, reason: str) -> None:
    """Half a file whose size is not recorded, and a file that was deleted, are errors; the old file stays."""
    target = tmp_path / "best.pt"
    target.write_bytes(b"old")
    with pytest.raises(ClientError, match=f"s3://bucket/best.pt cannot be downloaded.*{reason}"):
        fetch(store + path, UNCHECKED, tmp_path, force=True)
    found = [(each.name, each.read_bytes()) for each in tmp_path.iterdir() if each.is_file()]
    assert found == [("best.pt", b"old")]
