"""The files of the page, cached by browsers for ever below a path with the hash of their content."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

_VERSION: Final = re.compile(r"~([0-9a-f]{16})/")
_MOUNTED: Final = '"page/'
"""How `index.html` refers to the files; `js/api.js` removes the version from its own address."""


class PageFiles(StaticFiles):
    """Serves `~<hash>/<path>`, and `<path>` for a browser to revalidate at each use.

    All files change their address when one of them changes, so modules of two versions are never mixed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        self._folder = folder
        self._known: tuple[list[tuple[str, int, int]], str] = ([], "")

    @property
    def version(self) -> str:
        """The hash of all files; computed again only if a file has another size or time."""
        states = sorted(_states(self._folder))
        if states != self._known[0]:
            content = hashlib.sha256()
            for name, _, _ in states:
                path = Path(name)
                content.update(str(path.relative_to(self._folder)).encode() + b"\0" + path.read_bytes())
            self._known = states, content.hexdigest()[:16]
        return self._known[1]

    def index(self) -> Response:
        """Return the document of the page, which refers to the files of this version and preloads its modules."""
        own = f'"page/~{self.version}/'
        scripts = [*self._folder.glob("js/**/*.js"), self._folder / "vendor/uplot/uPlot.esm.js"]
        modules = [path.relative_to(self._folder) for path in sorted(scripts) if path.name != "early.js"]
        preloads = "\n".join(f'    <link rel="modulepreload" href={own}{path.as_posix()}" />' for path in modules)
        text = (self._folder / "index.html").read_text(encoding="utf-8").replace(_MOUNTED, own)
        page = text.replace("  </head>", f"{preloads}\n  </head>")
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a file; a hash in its path becomes `scope["page_version"]`."""
        mounted = scope.get("root_path", "") + "/"
        path = scope["path"].removeprefix(mounted)
        if found := _VERSION.match(path):
            scope = {**scope, "path": mounted + path[found.end() :], "page_version": found[1]}
        await super().__call__(scope, receive, send)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or 304 if the browser has the same version."""
        response = super().file_response(*args, **kwargs)
        scope: Scope = kwargs.get("scope") or args[2]
        is_current = "page_version" in scope and scope["page_version"] == self.version
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_current else "no-cache"
        return response


def _states(folder: Path | str) -> Iterator[tuple[str, int, int]]:
    """Yield path, time and size of each file; not with `Path.rglob`, which takes five times as long."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _states(entry.path)
            elif entry.is_file():
                state = entry.stat()
                yield entry.path, state.st_mtime_ns, state.st_size
