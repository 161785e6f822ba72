"""The HTTP interface of a run (`serve.py`): its routes, and what errors look like.

    app = create_app(Service(Settings(run="Results/XMCKit/LF-DebianTitles-small/dexml")))

Every error is JSON, {"detail": what was expected and what came}.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from engine.service import pages
from engine.service.batching import Job, Result
from engine.service.door import Door
from engine.service.problems import Problem, shown
from engine.service.replies import Health, Labels, Predictions, Refused
from engine.service.requests import PredictRequest, parse
from engine.service.service import Service, clock
from engine.service.settings import Limits

log = logging.getLogger(__name__)
JSON = "application/json"
LONGEST_QUERY = 1000  # characters of a search for labels
MOST_LABELS = 1000  # of a page
PARENT_SECONDS = 2.0  # between two looks whether the first process still lives
router = APIRouter()
# For the description alone: Door asks for the token.
TOKEN: dict[str, Any] = {"security": [{"token": []}]}
SCHEME = {"token": {"type": "http", "scheme": "bearer"}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refused, "description": "The body is no JSON"},
    401: {"model": Refused, "description": "The token is missing or wrong"},
    408: {"model": Refused, "description": "The body did not come in time"},
    413: {"model": Refused, "description": "The body is too large"},
    415: {"model": Refused, "description": "The body is said to be no JSON"},
    422: {"model": Refused, "description": "Something else was expected; the detail says what"},
    503: {"model": Refused, "description": "Too many texts wait"},
    504: {"model": Refused, "description": "The answer took too long"},
}


def create_app(service: Service) -> FastAPI:
    """The application of a service, which ends with it."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(service))
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="XMCKit",
        description="Labels for texts, by a model that was trained with XMCKit.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    app.add_middleware(Door, metrics=service.metrics, token=service.settings.token)
    app.add_exception_handler(Problem, _of_problem)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_query)
    app.add_exception_handler(ClientDisconnect, _of_nobody)
    app.add_exception_handler(Exception, _of_bug)
    described = app.openapi()  # made once, and kept
    described["components"]["securitySchemes"] = SCHEME
    return app


async def _watch(service: Service) -> None:
    """Reload at SIGHUP; end where the first of several processes is gone."""
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()

        def reload() -> None:
            threading.Thread(target=service.reload, name="reload", daemon=True).start()

        loop.add_signal_handler(signal.SIGHUP, reload)
    parent = os.getppid()
    while service.settings.workers > 1 and os.getppid() == parent:
        await asyncio.sleep(PARENT_SECONDS)
    if service.settings.workers > 1:
        log.warning("the first process is gone; this one ends")
        signal.raise_signal(signal.SIGTERM)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


# -------------------------------- routes


@router.post(
    "/predict",
    summary="Labels of texts, best first",
    responses={200: {"model": Predictions}, **REFUSALS},
    openapi_extra={
        **TOKEN,
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": PredictRequest.model_json_schema()}},
        },
    },
)
async def predict(request: Request) -> Response:
    service = _service(request)
    limits = service.settings.limits
    asked = parse(await _body(request, limits), limits)
    model = service.model
    model.check_threshold(asked.threshold)
    chosen = model.chosen(asked.allowed, asked.excluded)
    job = Job(model, asked.texts, asked.k, asked.threshold, chosen, asked.explain)
    result = await _answer(service, job)
    answer: dict[str, Any] = {
        "answers": result.answers,
        "score_is": model.predictor.ranker.score_is,
    }
    if result.members is not None:
        answer["members"] = result.members
    return JSONResponse(answer)


@router.get(
    "/labels",
    summary="Labels whose text has all words of a query",
    openapi_extra=TOKEN,
    responses={200: {"model": Labels}, 401: REFUSALS[401], 422: REFUSALS[422]},
)
def labels(
    request: Request,
    q: Annotated[str, Query(max_length=LONGEST_QUERY, description="words; none: all")] = "",
    offset: Annotated[int, Query(ge=0, le=1 << 40, description="labels left out before")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_LABELS, description="labels of a page")] = 20,
) -> Response:
    return JSONResponse(_service(request).model.find(q, offset, limit))


@router.get("/health", summary="What runs", responses={200: {"model": Health}})
async def health(request: Request) -> Response:
    service = _service(request)
    limits = service.settings.limits
    return JSONResponse(
        {
            "status": "ok",
            "model": service.model.facts(),
            "loaded": clock(service.model.loaded),
            "started": clock(service.started),
            "reload_failed": clock(service.reload_failed),
            "process": os.getpid(),
            "token": service.settings.token is not None,
            "limits": {
                "texts": limits.texts,
                "characters": limits.characters,
                "k": min(limits.k, len(service.model)),
                "body": limits.body,
            },
        }
    )


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    openapi_extra=TOKEN,
    responses={200: {"content": {"text/plain": {}}}, 401: REFUSALS[401]},
    response_class=Response,
)
def metrics(request: Request) -> Response:
    return Response(_service(request).metrics.page(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    return HTMLResponse(pages.typing_page(), headers=pages.typing_policy())


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    return HTMLResponse(pages.docs_page(request.app.title))


# -------------------------------- a request's way


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, which is left off as soon as it is too large.

    Raises:
        Problem: 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise Problem(415, f"expected the header `Content-Type: {JSON}`, got {shown(kind)}")
    said = request.headers.get("content-length", "0")
    if said.isdigit() and int(said[:20]) > limits.body:
        raise _too_large(limits, said[:20])
    came = bytearray()
    try:
        with anyio.fail_after(limits.seconds):
            await _read(request, limits, came)
    except TimeoutError:
        raise Problem(
            408,
            f"expected the whole body within {limits.seconds:g} seconds, got {len(came):,} bytes",
        ) from None
    return bytes(came)


async def _read(
    request: Request,
    limits: Limits,
    came: bytearray,
) -> None:
    """Add what comes of a body; Problem 413 at the first byte too many."""
    async for part in request.stream():
        if len(came) + len(part) > limits.body:
            raise _too_large(limits, "more")
        came += part


def _too_large(limits: Limits, came: str) -> Problem:
    return Problem(413, f"expected a body of at most {limits.body:,} bytes, got {came}")


async def _answer(service: Service, job: Job) -> Result:
    """The result of a job.

    Raises:
        Problem: 503 or 504.
    """
    seconds = service.settings.limits.seconds
    future = service.submit(job)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except asyncio.TimeoutError:
        raise Problem(
            504, f"the answer took longer than {seconds:g} seconds; ask for fewer texts, or later"
        ) from None


# -------------------------------- what errors look like


def _refused(
    status: int,
    detail: str,
    headers: Any = None,
) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status, headers=headers)


async def _of_problem(request: Request, error: Any) -> Response:
    return _refused(error.status, error.detail, error.headers)


async def _of_http(request: Request, error: Any) -> Response:
    """What FastAPI itself refuses: a path or a method."""
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"{shown(request.url.path)}: no such path; /docs lists them"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another")
        detail = f"{request.url.path}: expected method {allowed}, got {shown(request.method)}"
    return _refused(error.status_code, detail, error.headers)


async def _of_query(request: Request, error: Any) -> Response:
    """A parameter of the address that is not what is expected."""
    first = error.errors()[0]
    name = first["loc"][-1]
    return _refused(422, f"{name}: {first['msg'].lower()}, got {shown(first['input'])}")


async def _of_nobody(request: Request, error: Any) -> Response:
    """Nobody waits for an answer any more."""
    return _refused(400, "the connection was closed before the body had come")


async def _of_bug(request: Request, error: Any) -> Response:
    """A fault of ours, whose traceback is in the log."""
    return _refused(500, "the service failed to answer; its log says why")
