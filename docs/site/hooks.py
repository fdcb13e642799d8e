"""What the site of `make docs` needs beyond plain Markdown, so that the documents read as well on GitHub.

Links that leave docs/ lead to copies in the site; `<!-- from the code: NAME -->` becomes what the docstrings say.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents beside docs/ that are pages of the site too."""
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")
OPTIONS = {
    None: "",
    ", without members": "\n    options: {members: false, show_root_full_path: true}",
    ", with inherited members": "\n    options: {inherited_members: true}",
}
FROM_THE_CODE = re.compile(
    r"^<!-- from the code: ([\w.]+)(, (?:without|with inherited) members)? -->$", re.MULTILINE
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are beside docs/, and every file outside of it that a page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in list(files.documentation_pages()):
        for target, _ in LINK.findall(page.content_string):
            path = _repository_path(page.src_uri, target)
            uri = _site_uri(path)
            if (ROOT / path).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead the links to where the site has their targets, and put in what the docstrings say."""
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        target = _site_uri(_repository_path(here, link[1]))
        return f"]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[2] or ''})"

    def said(name: re.Match[str]) -> str:
        return f"::: {name[1]}" + OPTIONS[name[2]]

    return FROM_THE_CODE.sub(said, LINK.sub(moved, markdown))


def _repository_path(page: str, target: str) -> str:
    """Return what a link of a page names, as a path from the top of the repository."""
    source = next((source for source, uri in PAGES.items() if uri == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _site_uri(path: str) -> str:
    """Return where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"repository/{path}")
