"""A web server in a thread, on this machine's own address only."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from typing import Any

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.lazy import require
from nimbus_sd.app._session import Session

_LOOPBACK = "127.0.0.1"


class ReviewServer:
    """A running review page.

    Corrections are in the log and in ``layers["gold"]`` at once; :meth:`save` writes the
    table into the store. As a context manager it stops at the end of the block.

    Parameters
    ----------
    session
        What is reviewed.
    port
        0 takes a free one.
    reviewer
        Name that the page suggests.

    Attributes
    ----------
    session
        What is reviewed.
    port
        The one in use.
    """

    def __init__(self, session: Session, *, port: int = 0, reviewer: str = "") -> None:
        uvicorn = require("uvicorn", extra="review")
        require("starlette", extra="review")
        from nimbus_sd.app._routes import application

        self.session = session
        self._token = secrets.token_urlsafe(24)
        self._socket = _listen(port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application(session, self._token, reviewer=reviewer),
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
        )
        self._server: Any = uvicorn.Server(config)
        run = {"sockets": [self._socket]}
        self._thread = threading.Thread(target=self._server.run, kwargs=run, name="review page", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    @property
    def url(self) -> str:
        """Address with the token; whoever has it may review."""
        return f"http://{_LOOPBACK}:{self.port}/?token={self._token}"

    @property
    def frame_url(self) -> str:
        """Address for a frame in another page, such as a notebook, where cookies are not kept."""
        return f"http://{_LOOPBACK}:{self.port}/s/{self._token}/"

    @property
    def running(self) -> bool:
        """Whether the page is being served."""
        return self._thread.is_alive()

    def save(self) -> str:
        """Write the table with all corrections into the store; return its name there."""
        return self.session.save()

    def wait(self) -> None:
        """Serve until Ctrl-C or :meth:`stop`."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.5)
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """Stop serving; corrections stay where they are."""
        self._server.should_exit = True
        self._thread.join(5)
        if self._thread.is_alive():  # a browser holds a connection
            self._server.force_exit = True
            self._thread.join(5)
        self._socket.close()

    def __enter__(self) -> ReviewServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = self.url if self.running else "stopped"
        return f"ReviewServer({state})"


def _listen(port: int) -> socket.socket:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65_536:
        msg = f"port={port!r}: valid: 0 (a free one) to 65535"
        raise InputError(msg)
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((_LOOPBACK, port))
        found.listen(128)
    except OSError as error:
        found.close()
        msg = f"port={port} can't be used ({error.strerror}); choose another, or leave it out"
        raise InputError(msg) from error
    return found
