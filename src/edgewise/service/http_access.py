"""Who may use which route of an HTTP port: a token's role, and a pause for addresses that guess.

    Authorization: Bearer edgewise_…

The health routes are open, for whoever restarts a process asks them. Everything else needs a role:

    infer        POST …/infer                   feedback     POST …/feedback
    metrics      /metrics, …/stats              any token    what models there are, and what they take
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

from edgewise.core.backoff import Backoff
from edgewise.core.errors import Busy, EdgewiseError, IdentityRefused
from edgewise.ledger.metric import Metric, metric
from edgewise.security.tokens import ROLES, Token, Tokens
from edgewise.service.http_errors import error_body, error_headers, status_of

log = logging.getLogger("edgewise.security")

FREE_GUESSES = 5
PAUSE = Backoff(1.0, 2.0, most_s=300.0)
FORGOTTEN_S = 900.0
_MOST_ADDRESSES = 4096
_SCHEME = b"bearer "
_V6_PREFIX = 64


class GuessLimit:
    """Wrong tokens by address: after the fifth each doubles the pause until anything of that address is looked at.

    Attributes:
        num_limited: Requests refused because of it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.num_limited = 0

    def check(self, address: str) -> None:
        """Refuses an address that is to wait.

        Args:
            address: Where a request came from.

        Raises:
            Busy: Status 429, with the seconds that are left.
        """
        num, last_s = self._wrong.get(_network(address), (0, 0.0))
        left_s = last_s + PAUSE.delay_s(num - FREE_GUESSES) - self._now() if num >= FREE_GUESSES else 0.0
        if left_s > 0.0:
            self.num_limited += 1
            raise Busy(
                f"{num} wrong tokens came from this address; nothing of it is looked at for {left_s:.0f} s. "
                "Come back then, with the right one.",
                status=429,
                retry_after_s=left_s,
            )

    def guessed(self, address: str) -> None:
        """Counts a wrong token.

        Args:
            address: Where it came from.
        """
        network, now_s = _network(address), self._now()
        num, last_s = self._wrong.pop(network, (0, now_s))
        num = 1 if now_s - last_s > FORGOTTEN_S else num + 1
        self._wrong[network] = (num, now_s)
        while len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        if num & (num - 1) == 0:
            log.warning("%d wrong tokens from %s", num, network)


class HttpAccess:
    """An application whose routes need tokens.

    Attributes:
        ends: Requests by what came of them.
        limit: Of addresses that guess.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, limit: GuessLimit | None = None) -> None:
        self._app, self._tokens = app, tokens
        self.limit = limit or GuessLimit()
        self.ends: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or says what it lacks."""
        try:
            self._check(scope)
        except EdgewiseError as error:
            await _refuse(error, send)
            return
        await self._app(scope, receive, send)

    def metrics(self) -> list[Metric]:
        """What `/metrics` says of access."""
        ends: dict[Any, float] = {(("end", end),): num for end, num in sorted(self.ends.items())}
        return [metric("http_access_total", "counter", "Requests by what their token was good for.", ends)]

    def _check(self, scope: Scope) -> None:
        role = role_of(str(scope.get("method", "")), str(scope.get("path", "")))
        if role is None:
            return
        address = str((scope.get("client") or ("",))[0])
        try:
            self.limit.check(address)
        except Busy:
            self.ends["limited"] += 1
            raise
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if given[: len(_SCHEME)].lower() != _SCHEME:
            self.ends["no_token"] += 1
            raise IdentityRefused(
                "this port needs a token: send the header 'Authorization: Bearer TOKEN'. Its operator makes one with "
                "'edgewise token create'.",
                status=401,
            )
        token = self._tokens.find(given[len(_SCHEME) :].strip().decode("latin-1"))
        if token is None:
            self.ends["wrong_token"] += 1
            self.limit.guessed(address)
            raise IdentityRefused(
                "this token is unknown, was revoked or has expired. Ask the operator of this port for a new one.",
                status=401,
            )
        self._check_role(token, role)
        self.ends["allowed"] += 1

    def _check_role(self, token: Token, role: str) -> None:
        if role and not token.may(role):
            self.ends["wrong_role"] += 1
            raise IdentityRefused(
                f"token {token.name!r} may {', '.join(ROLES[r] for r in token.roles if r in ROLES)}; this needs the role "
                f"{role!r}. Ask for a token that has it.",
                status=403,
            )


def role_of(method: str, path: str) -> str | None:
    """The role that a route needs.

    Args:
        method: Of the request.
        path: Of the request.

    Returns:
        One of `ROLES`; "" for any, None for a route that is open.
    """
    ways = path.removesuffix("/").split("/")
    if ways[1:3] == ["v2", "health"]:
        return None
    if path.removesuffix("/") == "/metrics" or ways[-1] == "stats":
        return "metrics"
    if method not in ("GET", "HEAD") and ways[-1] in ("infer", "feedback"):
        return ways[-1]
    return ""


def _network(address: str) -> str:
    """An address, of IPv6 its network: a client has the whole of it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, _V6_PREFIX), strict=False))


async def _refuse(error: EdgewiseError, send: Send) -> None:
    body, status = error_body(error.message), status_of(error)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [*error_headers(error), *([(b"www-authenticate", b"Bearer")] if status == 401 else [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
