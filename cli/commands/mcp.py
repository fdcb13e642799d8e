"""`trainwire mcp`: an MCP server for agents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trainwire.cli.commands.options import DataDir, servers
from trainwire.cli.mcp_tools.server import make_server
from trainwire.cli.numbers import whole_option
from trainwire.cli.terminal import warn
from trainwire.client.client import Client
from trainwire.client.errors import ClientError
from trainwire.stack.errors import Problem

HOST = "127.0.0.1"


def mcp(
    port: Annotated[
        int | None, whole_option(1, 65_535, f"Serve streamable HTTP at http://{HOST}:PORT/mcp instead of stdio.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Serve jobs, metrics and logs to agents over the Model Context Protocol, read-only (docs/mcp.md).

    Reads from the gateway in TRAINWIRE_URL with the token in TRAINWIRE_TOKEN, else from DATABASE_URL, else from
    the running `trainwire up`.
    """
    server = make_server(lambda: _client(data_dir))
    if port is None:
        server.run("stdio")
        return
    warn(f"serving http://{HOST}:{port}/mcp to all users of this machine; ctrl-C ends it")
    server.run("streamable-http", host=HOST, port=port, stateless_http=True, json_response=True)


def _client(data_dir: Path | None) -> Client:
    if data_dir is None:
        return Client()
    try:
        address = servers(data_dir)
        if address.gateway_url is None:
            return Client(database_url=address.need_database_url())
        return Client(address.gateway_url)
    except Problem as exc:
        raise ClientError(str(exc)) from exc
