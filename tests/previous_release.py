"""The previous release, built from its commit and installed beside the tests' own packages."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT

PREVIOUS_RELEASE: Final = "30fd61e5861c0a35d6b9af0e33cae0e209842d67"
"""Commit of the release before this version. There is none yet: a state of the day before, with fewer tables.

After a release, set it to the commit of its tag (.github/workflows/release.yml).
"""


@pytest.fixture(scope="session")
def previous_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with the wheel of the previous release and the packages of this one.

    Without the commit (a shallow clone, a source distribution) the test is skipped; it fails on GitHub, whose
    workflow checks out the whole history.
    """
    folder = tmp_path_factory.mktemp("previous")
    archive = folder / "source.tar"
    packed = _git("archive", "--output", str(archive), PREVIOUS_RELEASE)
    if packed.returncode:
        reason = f"commit {PREVIOUS_RELEASE} of the previous release is not in this clone: {packed.stderr.strip()}"
        if os.environ.get("GITHUB_ACTIONS"):
            pytest.fail(f"{reason}; check out the whole history (fetch-depth: 0)")
        pytest.skip(reason)
    (folder / "source").mkdir()
    _run("tar", "--extract", "--file", str(archive), "--directory", str(folder / "source"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(folder / "source"))
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    venv.create(folder / "venv")
    _run(*pip, "--python", str(python), "install", "--no-deps", str(wheel))
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (site / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a .pth file in there is not read
    return str(python)


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
