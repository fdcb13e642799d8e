"""A real nginx with the configuration that docs/deploy.md shows; skipped where it is not installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
import requests

from trainwire.stack.server import EmbeddedServer

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "deploy.md"
_FOLDERS: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


class Nginx(EmbeddedServer):
    """nginx on 127.0.0.1 in front of a gateway, which it serves below /trainwire/."""

    name = "nginx"
    stop_signal = signal.SIGTERM
    stop_timeout_s = 5

    def __init__(self, folder: Path, gateway_url: str, changes: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self._binary = _found()
        (block,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
        for old, new in (changes or {}).items():
            assert old in block
            block = block.replace(old, new)
        self._block = block.replace("http://127.0.0.1:8800", gateway_url)

    @property
    def url(self) -> str:
        """Where the page is, through nginx."""
        return f"http://127.0.0.1:{self.port}/trainwire/"

    def _prepare(self) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {self._data_dir}/{kind}; " for kind in kinds)
        user = "user root; " if os.geteuid() == 0 else ""
        block = self._block.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
        head = f"{user}daemon off; pid {self._data_dir}/nginx.pid; error_log stderr; worker_processes 1;"
        http = f"http {{ access_log off; {paths} {block} }}"
        (self._data_dir / "nginx.conf").write_text(f"{head}\nevents {{}}\n{http}\n")

    def _command(self) -> list[str]:
        return [self._binary, "-p", str(self._data_dir), "-c", str(self._data_dir / "nginx.conf"), "-e", "stderr"]

    def _is_ready(self) -> bool:
        if not self.child.listens_on(self.port):
            return False
        return requests.get(f"{self.url}healthz", timeout=20).status_code == 200


def _found() -> str:
    found = shutil.which("nginx", path=_FOLDERS)
    if found is None:
        reason = "nginx is not installed (Debian: apt-get install nginx-light)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
