"""What a request is refused with: an HTTP status, and one sentence that says why."""

from __future__ import annotations

from typing import Any

SHOWN = 60  # characters of what came that a message repeats


class Problem(Exception):
    """A request that cannot be answered.

    Args:
        status: 4xx for what the client can mend, 503 and 504 for what it can try again.
        detail: what was expected and what came.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def shown(value: Any) -> str:
    """What came, short enough for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, bytes):
        value = value[: 4 * SHOWN].decode("utf-8", "replace")
    if isinstance(value, int) and value.bit_length() > 64:  # str() of a huge one may be refused
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
