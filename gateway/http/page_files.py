"""Serves the files of the web page; paths include a hash of the files, so browsers may cache them for ever."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

_VERSION: Final = re.compile(r"~([0-9a-f]{16})/")
_MOUNTED: Final = '"page/'
"""Path prefix in `index.html` that `PageFiles` replaces with one that includes the version.

`js/api.js` removes the version from its own URL to find the URL of the gateway.
"""


class PageFiles(StaticFiles):
    """Serves `~<hash>/<path>`, which browsers cache for ever, and `<path>`, which they revalidate at each use.

    The hash covers all files. When one file changes, the URLs of all change, so modules of two versions are never
    mixed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        self._folder = folder.resolve()
        self._known: tuple[dict[str, tuple[int, int]], str, str] = ({}, "", "")
        """Modification time and size by path, the hash of all files, and `index.html` with that hash."""

    def index(self) -> Response:
        """Return `index.html` with the current hash in the paths of files, and preload links for all modules."""
        self._update()
        return HTMLResponse(self._known[2], headers={"Cache-Control": "no-cache"})

    def _update(self) -> None:
        """Recompute the hash and `index.html` if the size or modification time of any file has changed."""
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        states = {str(path): _state_of(path.stat()) for path in files}
        if states == self._known[0]:
            return
        content = hashlib.sha256()
        for path in files:
            content.update(str(path.relative_to(self._folder)).encode() + b"\0" + path.read_bytes())
        version = content.hexdigest()[:16]
        own = f'"page/~{version}/'
        scripts = [path for path in files if path.suffix == ".js" and path.name != "early.js"]
        modules = [path.relative_to(self._folder).as_posix() for path in scripts]
        preloads = "\n".join(f'    <link rel="modulepreload" href={own}{module}" />' for module in modules)
        text = (self._folder / "index.html").read_text(encoding="utf-8").replace(_MOUNTED, own)
        self._known = states, version, text.replace("  </head>", f"{preloads}\n  </head>")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: serve a file; a hash in its path is moved to `scope["page_version"]`."""
        mounted = scope.get("root_path", "") + "/"
        found = _VERSION.match(scope["path"].removeprefix(mounted))
        if found:
            rest = scope["path"].removeprefix(mounted)[found.end() :]
            scope = {**scope, "path": mounted + rest, "page_version": found[1]}
        await super().__call__(scope, receive, send)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return a file, or 304 if the browser has it; with the current hash in its path it is cached for ever."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        if not self._known[0]:
            self._update()
        states, version, _ = self._known
        # Only this file is compared: to look at all of them takes milliseconds, and a page has some seventy.
        is_same = states.get(str(full_path)) == _state_of(stat_result)
        is_current = is_same and scope.get("page_version") == version
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_current else "no-cache"
        return response


def _state_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_mtime_ns, found.st_size
