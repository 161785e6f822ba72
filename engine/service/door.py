"""What every request passes before it is answered: the token, and the clock."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from engine.service.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Without a token: whether it lives, and pages that hold nothing of the model or its texts.
OPEN = frozenset({"/", "/health", "/docs", "/openapi.json"})
PATHS = OPEN | {"/predict", "/labels", "/metrics"}  # counted by name; others together
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


class Door:
    """Lets requests with the token through, and counts all of them.

    Args:
        token: None lets everybody through.
    """

    def __init__(
        self,
        app: App,
        metrics: Metrics,
        token: str | None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(
        self,
        scope: Message,
        receive: Receive,
        send: Send,
    ) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        is_gone = False

        async def heard() -> Message:
            nonlocal is_gone
            message = await receive()
            is_gone = is_gone or message["type"] == "http.disconnect"
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            if not is_gone:  # the server may have answered what is no HTTP, and then refuses more
                await send(message)

        path = scope["path"] if scope["path"] in PATHS else "other"
        try:
            if path in OPEN or self._knows(scope):
                await self._app(scope, heard, noted)
            else:
                await _refusal()(scope, heard, noted)
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _knows(self, scope: Message) -> bool:
        """Whether a request brings the token; takes the same time for any wrong one."""
        if self._token is None:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and secrets.compare_digest(given[0], self._token)


def _refusal() -> JSONResponse:
    detail = "expected the header `Authorization: Bearer TOKEN` with the token of this service"
    return JSONResponse(
        {"detail": detail}, status_code=401, headers={"WWW-Authenticate": 'Bearer realm="xmckit"'}
    )
