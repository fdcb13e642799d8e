"""Locations of checkpoints: URIs stay, URIs that pathlib has changed are repaired, local paths are absolute."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

Tell = Callable[..., Any]


class CloudPath(os.PathLike[str]):
    """As of cloudpathlib: Python gets a local copy, which has to be downloaded first."""

    def __fspath__(self) -> str:
        raise AssertionError("downloaded")

    def __str__(self) -> str:
        return "s3://bucket/x.pt"


URIS: dict[str, tuple[Any, str]] = {
    "as it is": ("s3://bucket/x.pt", "s3://bucket/x.pt"),
    "pathlib": (Path("s3://bucket/runs/x.pt"), "s3://bucket/runs/x.pt"),
    "a pure path": (PurePosixPath("gs://bucket/x.pt"), "gs://bucket/x.pt"),
    "its text": ("s3:/bucket/x.pt", "s3://bucket/x.pt"),
    "a host with a port": (Path("hdfs://name:8020/x.pt"), "hdfs://name:8020/x.pt"),
    "no host": ("hdfs:/x.pt", "hdfs:/x.pt"),
    "databricks": ("dbfs:/mnt/x.pt", "dbfs:/mnt/x.pt"),
    "mlflow": (Path("runs:/a1b2/model"), "runs:/a1b2/model"),
    "a scheme of its own": (
        "abfss://box@account.dfs.core.windows.net/x",
        "abfss://box@account.dfs.core.windows.net/x",
    ),
    "a query": ("https://host/x.pt?versionId=1", "https://host/x.pt?versionId=1"),
    "another machine's file": ("file://host/data/x.pt", "file://host/data/x.pt"),
    "cloudpathlib": (CloudPath(), "s3://bucket/x.pt"),
}


@pytest.mark.parametrize("name", URIS)
def test_a_uri_is_reported_as_one(tell: Tell, name: str) -> None:
    """It is not made a local path, in any form."""
    given, uri = URIS[name]
    told = tell()
    told.run.checkpoint(given)
    told.run.metric(loss=1, checkpoint_path=given)
    (checkpoint,) = told.bodies("checkpoints")
    assert (checkpoint.uri, checkpoint.size_bytes) == (uri, None)
    assert told.points()[0].checkpoint_path == uri


LOCAL: dict[str, Callable[[Path], Any]] = {
    "relative": lambda _: "x y.pt",
    "pathlib": lambda _: Path("x y.pt"),
    "bytes": lambda folder: os.fsencode(folder / "x y.pt"),
    "a home": lambda _: "~/x y.pt",
    "a home by pathlib": lambda _: Path("~/x y.pt"),
    "a file's URL": lambda folder: (folder / "x y.pt").as_uri(),
    "a file's URL by pathlib": lambda folder: Path((folder / "x y.pt").as_uri()),
    "a file's URL with a host": lambda folder: f"file://localhost{folder}/x%20y.pt",
}


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_path_is_absolute(tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the size of its file; where the process goes later changes nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("x y.pt").write_bytes(b"123")
    told = tell()
    told.run.checkpoint(LOCAL[name](tmp_path))
    monkeypatch.chdir("/")
    (checkpoint,) = told.bodies("checkpoints")
    assert (checkpoint.uri, checkpoint.size_bytes) == (str(tmp_path / "x y.pt"), 3)


@pytest.mark.parametrize("name", ["$HOME/x.pt", "s3:/b/x.pt", "~/x.pt", "C:/x.pt"])
def test_a_file_of_an_odd_name_is_found(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An existing file of the given name is the checkpoint; variables of a shell are not expanded."""
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True)
    Path(name).write_bytes(b"123")
    told = tell()
    told.run.checkpoint(name)
    (checkpoint,) = told.bodies("checkpoints")
    assert (checkpoint.uri, checkpoint.size_bytes) == (f"{tmp_path}/{name}", 3)


@pytest.mark.parametrize("name", ["~nobody\0/x", "s3:/b\0", "file:///a\0b"])
def test_a_path_that_no_system_takes_raises_nothing(tell: Tell, name: str) -> None:
    """It is reported as far as it goes."""
    told = tell()
    told.run.checkpoint(name)
    assert told.bodies("checkpoints")
