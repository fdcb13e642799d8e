"""The files of the page, cached by browsers for ever below a path with the hash of their content."""

from __future__ import annotations

import hashlib
import re
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
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        states = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
        if states != self._known[0]:
            content = hashlib.sha256()
            for path in files:
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
        found = _VERSION.match(scope["path"].removeprefix(mounted))
        if found:
            rest = scope["path"].removeprefix(mounted)[found.end() :]
            scope = {**scope, "path": mounted + rest, "page_version": found[1]}
        await super().__call__(scope, receive, send)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or 304 if the browser has the same version."""
        response = super().file_response(*args, **kwargs)
        scope: Scope = kwargs.get("scope") or args[2]
        is_current = scope.get("page_version") == self.version
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_current else "no-cache"
        return response
