"""Pages for people: one to type a text on, and the description of the interface."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from fastapi.openapi.docs import get_swagger_ui_html

PAGE = Path(__file__).with_name("page.html")
WITHOUT_NETWORK = (
    '<p style="margin:2rem;font-family:system-ui,sans-serif">The interactive page is drawn by '
    "Swagger UI, which your browser fetches from cdn.jsdelivr.net. Where it cannot, "
    '<a href="/openapi.json">/openapi.json</a> describes the interface.</p>'
)
DRAWN = '<div id="swagger-ui">'  # in FastAPI's page; what stands inside is replaced


@functools.cache
def typing_page() -> str:
    """The page of `/`: one file that fetches nothing but answers."""
    return PAGE.read_text(encoding="utf-8")


@functools.cache
def typing_policy() -> dict[str, str]:
    """Headers under which the browser runs the page's own script and style, and no other."""
    text = typing_page()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    rules = [
        "default-src 'none'",
        f"script-src '{_hash(script)}'",
        f"style-src '{_hash(style)}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return {"Content-Security-Policy": "; ".join(rules), "Referrer-Policy": "no-referrer"}


def _hash(inline: str) -> str:
    digest = hashlib.sha256(inline.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def docs_page(title: str) -> str:
    """FastAPI's page of the interface, which says what it needs where it cannot be drawn."""
    page = bytes(
        get_swagger_ui_html(
            openapi_url="openapi.json", title=title, swagger_favicon_url="data:,"
        ).body
    ).decode()
    assert page.count(DRAWN) == 1, "FastAPI's page names the place of its drawing otherwise"
    return page.replace(DRAWN, DRAWN + WITHOUT_NETWORK)
