"""Who gets in: requests to this machine's own address that carry the token."""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

HEADER = b"x-review-token"
#: Pages elsewhere may show the page in a frame only by an address that holds the token.
_PREFIX = "/s/"
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_READING = ("GET", "HEAD")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)


class TokenGuard:
    """Let requests with the token through and answer 403 to all others.

    The token may be in the query of the first request, which answers with a cookie and
    sends the browser to the address without it; in that cookie; in the header
    ``X-Review-Token``; or at the start of the path, ``/s/<token>/``, as notebooks need it,
    whose frames get no cookies. A foreign ``Host`` is refused as well: it is how pages
    elsewhere reach servers on this machine. Requests that change something must come
    from this page itself: to a cookie, all ports of this machine are one site.

    Parameters
    ----------
    app
        ASGI application.
    token
        The secret.
    """

    def __init__(self, app: Any, token: str) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if _without_port(host) not in _HOSTS:
            await _answer(send, 403, "this address is for 127.0.0.1 only")
            return
        if scope["method"] not in _READING and not _from_here(headers, host):
            await _answer(send, 403, "only the review page itself may change something")
            return
        framed = scope["path"].startswith(_PREFIX)
        if framed:
            given, _, rest = scope["path"].removeprefix(_PREFIX).partition("/")
            allowed, scope = self._fits(given), scope | {"path": f"/{rest}", "raw_path": f"/{rest}".encode()}
        else:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            if scope["path"] == "/" and self._fits(query.pop("token", [""])[0]):
                await self._welcome(send, host, urlencode(query, doseq=True))
                return
            allowed = self._fits(headers.get(HEADER, b"").decode("latin-1")) or self._fits(
                _cookie(headers, cookie_name(host))
            )
        if not allowed:
            await _answer(send, 403, "the token is missing: open the address that nimbus-sd printed, whole")
            return
        await self.app(scope, receive, _with_headers(send, framed))

    def _fits(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())

    async def _welcome(self, send: Any, host: str, query: str) -> None:
        cookie = f"{cookie_name(host)}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        target = f"/?{query}" if query else "/"
        await _answer(send, 303, "", (b"set-cookie", cookie.encode()), (b"location", target.encode()))


def _from_here(headers: dict[bytes, bytes], host: str) -> bool:
    """Whether browsers say that a request comes from a page of this server; other programs say nothing."""
    origin = headers.get(b"origin", f"http://{host}".encode())
    site = headers.get(b"sec-fetch-site", b"same-origin")
    return origin == f"http://{host}".encode() and site == b"same-origin"


def cookie_name(host: str) -> str:
    """Cookies don't tell ports apart; names do."""
    port = host.rpartition(":")[2]
    return f"nimbus_review_{port}" if port.isdigit() else "nimbus_review"


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _cookie(headers: dict[bytes, bytes], name: str) -> str:
    try:
        found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _with_headers(send: Any, framed: bool) -> Any:
    # notebooks have addresses of many kinds (vscode-webview: among them): no list would hold them all
    policy = _POLICY if framed else f"{_POLICY}; frame-ancestors 'none'"

    async def wrapped(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            extra = [
                (b"content-security-policy", policy.encode()),
                (b"referrer-policy", b"no-referrer"),
                (b"x-content-type-options", b"nosniff"),
            ]
            message = message | {"headers": [*message.get("headers", []), *extra]}
        await send(message)

    return wrapped


async def _answer(send: Any, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    fixed = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})
