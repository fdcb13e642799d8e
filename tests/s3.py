"""S3 servers over HTTP: moto's in a process of its own, or a real one where there is one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Final

import boto3
from botocore.config import Config

from trainwire.stack.persisted_config import free_port as free_port  # noqa: PLC0414 - tests/certify imports it from here

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

START_TIMEOUT_S: Final = 60
CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret"}
REGION: Final = "us-east-1"
SEAWEEDFS_IMAGE: Final = "chrislusf/seaweedfs:4.47"
SEAWEEDFS_PORT: Final = 8333


def s3_environment(url: str) -> dict[str, str]:
    """Return the standard variables that lead boto3 to the server at `url`."""
    return {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": REGION, **_credentials()}


def s3_client(url: str) -> S3Client:
    """Return a client of the server at `url`, which does not retry."""
    credentials = _credentials()
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


@contextmanager
def s3_server(port: int | None = None, **env: str) -> Iterator[str]:
    """Run moto's server on loopback, empty, and give its URL; `TEST_S3_URL` names another server.

    With INITIAL_NO_AUTH_ACTION_COUNT="0" in its environment it is moto's in any case, and knows no key at all.
    """
    if (given := os.environ.get("TEST_S3_URL")) and not env:
        yield given
        return
    port = port or free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_answer(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


@contextmanager
def seaweedfs() -> Iterator[str]:
    """Run SeaweedFS in a container and give its URL."""
    with warnings.catch_warnings():  # a third party's, at its import and start
        warnings.simplefilter("ignore")
        containers = import_module("testcontainers.core.container")
        container = containers.DockerContainer(SEAWEEDFS_IMAGE, command="mini -dir=/data", env=dict(CREDENTIALS))
        container.with_exposed_ports(SEAWEEDFS_PORT).start()
    try:
        url = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(SEAWEEDFS_PORT)}"
        _await_answer(url)
        yield url
    finally:
        container.stop()


def docker_listens() -> bool:
    """Return whether a Docker engine listens. Asks the socket: the client leaks one if there is no engine."""
    if os.environ.get("DOCKER_HOST"):
        return True
    with socket.socket(socket.AF_UNIX) as engine:
        return engine.connect_ex("/var/run/docker.sock") == 0


def _credentials() -> dict[str, str]:
    """Return the keys of the environment for a server of the user's, else ours."""
    if "TEST_S3_URL" in os.environ:
        return {name: os.environ[name] for name in CREDENTIALS}
    return dict(CREDENTIALS)


def _await_answer(url: str, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers, though it refuses this request
        except OSError:
            assert process is None or process.poll() is None, "moto's server has ended"
            assert time.monotonic() < deadline, f"{url} does not answer within {START_TIMEOUT_S} s"
            time.sleep(0.05)
