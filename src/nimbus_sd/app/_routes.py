"""The addresses of the page: files, tables as JSON, arrays as bytes."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusError
from nimbus_sd.app._guard import TokenGuard
from nimbus_sd.app._page import Page
from nimbus_sd.app._session import Session

_MAX_BODY = 2**20


class _Missing(Exception):
    """Nothing is at this address."""


def application(session: Session, token: str, *, reviewer: str) -> TokenGuard:
    """The page as an ASGI application.

    Parameters
    ----------
    session
        What is reviewed.
    token
        Without it nothing is served.
    reviewer
        Name that the page suggests.
    """
    page = Page(session, reviewer=reviewer)
    files = _files(resources.files("nimbus_sd.app") / "static")

    def static(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            raise _Missing
        kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "text/plain"
        return Response(files[name], media_type=kind, headers={"cache-control": "no-cache"})

    def tile(request: Request) -> Response:
        where = {k: int(request.path_params[k]) for k in ("field", "level", "ty", "tx")}
        if not page.has_tile(**where):
            raise _Missing
        if request.path_params["what"] == "cells":
            return _bytes(session.tiles.cells(**where), keep=True)
        channels = [_number(c) for c in request.query_params.get("c", "").split(",")]
        known = len(session.fields[where["field"]].channels)
        if not all(0 <= c < known for c in channels):
            raise _Missing
        if len(channels) > known:
            msg = f"{len(channels)} channels asked for; the image has {known}, ask for each once"
            raise InputError(msg)
        return _bytes(session.tiles.image(**where, channels=channels), keep=True)

    def crop(request: Request) -> Response:
        png = page.crop(int(request.path_params["row"]), dict(request.query_params))
        return Response(png, media_type="image/png", headers={"cache-control": "private, max-age=600"})

    def cells(request: Request) -> Response:
        return _bytes(page.cells(_field(session, request)))

    def values(request: Request) -> Response:
        what, marker = request.path_params["what"], request.path_params["marker"]
        return _bytes(page.values(_field(session, request), what, marker))

    def contrast(request: Request) -> Response:
        field, channel = _field(session, request), int(request.path_params["channel"])
        if channel >= len(session.fields[field].channels):
            raise _Missing
        low, high = session.tiles.contrast(field, channel)
        return JSONResponse({"low": low, "high": high})

    def get(what: Callable[[dict[str, str]], Any]) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            return JSONResponse(what(dict(request.query_params)), headers={"cache-control": "no-store"})

        return endpoint

    def post(what: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            # pages elsewhere can send forms and text unasked, but not this type
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return JSONResponse({"error": "the request is not application/json"}, status_code=415)
            body = await _body(request)
            if body is None:
                return JSONResponse({"error": f"a request has at most {_MAX_BODY} bytes"}, status_code=413)
            try:
                given = json.loads(body)
            except ValueError:
                given = None
            if not isinstance(given, dict):
                return JSONResponse({"error": "the request is not a JSON object"}, status_code=400)
            return JSONResponse(await run_in_threadpool(what, given))

        return endpoint

    def answers_csv(request: Request) -> Response:
        name = f"{session.table}_review.csv"
        disposition = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(page.csv(), media_type="text/csv; charset=utf-8", headers=disposition)

    where = "/tiles/{field:int}/{level:int}/{ty:int}/{tx:int}"
    routes = [
        Route("/", static),
        Route("/static/{name:path}", static),
        Route(where + "/{what}", _one_of(tile, "what", ("image", "cells"))),
        Route("/crops/{row:int}.png", crop),
        Route("/api/fields/{field:int}/cells", cells),
        Route(
            "/api/fields/{field:int}/values/{what}/{marker:path}", _one_of(values, "what", ("score", "gold"))
        ),
        Route("/api/fields/{field:int}/contrast/{channel:int}", contrast),
        Route("/api/session", get(page.overview)),
        Route("/api/clusters", get(page.clusters)),
        Route("/api/queue", get(page.queue)),
        Route("/api/progress", get(page.progress)),
        Route("/api/answers.csv", answers_csv),
        Route("/api/clusters", post(page.edit), methods=["POST"]),
        Route("/api/answers", post(page.answer), methods=["POST"]),
        Route("/api/save", post(page.save), methods=["POST"]),
        Route("/api/training-set", post(page.training_set), methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {_Missing: _not_found, ElementNotFoundError: _not_found, NimbusError: _refused}
    return TokenGuard(Starlette(routes=routes, exception_handlers=handlers), token)


async def _body(request: Request) -> bytes | None:
    """What was sent; None if it is, or says that it is, too large, which is then not read."""
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or len(said) > 9 or int(said) > _MAX_BODY:
        return None
    body = b""
    async for part in request.stream():  # parts without a length, too
        body += part
        if len(body) > _MAX_BODY:
            return None
    return body


def _files(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    """All files of the page by their address, so that no address can name another file."""
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            found |= _files(entry, f"{name}/")
        else:
            found[name] = entry.read_bytes()
    return found


def _one_of(
    endpoint: Callable[[Request], Response], key: str, valid: tuple[str, ...]
) -> Callable[[Request], Response]:
    def checked(request: Request) -> Response:
        if request.path_params[key] not in valid:
            raise _Missing
        return endpoint(request)

    return checked


def _field(session: Session, request: Request) -> int:
    field = int(request.path_params["field"])
    if field >= len(session.fields):
        raise _Missing
    return field


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 6 else -1


def _bytes(body: bytes | np.ndarray, *, keep: bool = False) -> Response:
    # pixels never change while the server runs; its address is another one next time
    headers = {"cache-control": "private, max-age=3600" if keep else "no-store"}
    return Response(bytes(body), media_type="application/octet-stream", headers=headers)


def _not_found(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error) or f"nothing at {request.url.path}"}, status_code=404)


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)
