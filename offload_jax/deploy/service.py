"""The decision service: instances come in as JSON, checked plans go out.

`POST /plan` takes one instance, or an array of them, in the format of instance files; every answer
is checked in NumPy before it leaves. See docs/how-to/deployment.md.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offload_jax.deploy.batching import Batcher, Busy
from offload_jax.deploy.decide import Ask, Decider
from offload_jax.deploy.metrics import ServiceMetrics
from offload_jax.files.checks import SchemaError

log = structlog.get_logger("offload_jax.service")


@dataclass(frozen=True)
class Limits:
    """What the service takes."""

    body_bytes: int = 2**20  # of one request
    instances: int = 64  # in one request
    waiting: int = 256  # instances that may wait; more are refused with 503
    window_s: float = 0.002  # that a request waits for others to be decided with
    deadline_s: float = 1.0  # of a request that names none


class Refused(Exception):
    """A request that gets no plan: HTTP status and a text that says why."""

    def __init__(self, status: int, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.field = status, detail, field


def make_app(decider: Decider, limits: Limits = Limits(), token: str | None = None) -> FastAPI:
    """The service as an ASGI application; with a `token`, /plan wants it as bearer token."""
    metrics = ServiceMetrics()
    batcher = Batcher(decider, metrics, limits.window_s, limits.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    app = FastAPI(title="offload-jax", version=_version(decider), lifespan=lifespan)
    app.state.metrics = metrics
    app.add_middleware(_Counted, metrics=metrics)

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> JSONResponse:
        log.info("refused", status=error.status, detail=error.detail, path=request.url.path)
        headers = {"Retry-After": "1"} if error.status == 503 else None
        content = {"detail": error.detail, "field": error.field}
        return JSONResponse(content, error.status, headers=headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the service decides, and with what."""
        return {"status": "ok", "bundle": decider.bundle.name, "runtime": decider.runtime.name}

    @app.get("/metrics", response_class=Response)
    async def page() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    @app.post("/plan", openapi_extra=_openapi(decider, token is not None), responses=_REFUSALS)
    async def plan(
        request: Request,
        samples: int = Query(1, ge=1, le=decider.samples),
        seed: int = Query(0, ge=0, lt=2**32),
        deadline_s: float = Query(limits.deadline_s, gt=0, le=60),
    ) -> JSONResponse:
        """Decides one instance, or each of an array of them.

        `samples` above 1 also tries sampled plans, drawn from `seed`, while `deadline_s` allows.
        """
        _authorise(request, token)
        end = time.monotonic() + deadline_s
        try:
            batcher.check_room()  # before the body costs any time
            body = await _body(request, limits.body_bytes)
            records, many = _instances(decider, body, limits.instances)
            answers = await batcher.decide(records, [Ask(samples, seed, end)] * len(records))
        except Busy as error:
            raise Refused(503, f"{error}; try again later") from None
        found = [answer.to_json() for answer in answers]
        return JSONResponse(found if many else found[0])

    return app


class _Counted:
    """ASGI middleware that counts what /plan answers and how long that took."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != "/plan":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 500  # where nothing else is answered

        async def sent(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            self._metrics.requests.labels(str(status)).inc()
            self._metrics.latency.observe(time.perf_counter() - start)


def _version(decider: Decider) -> str:
    return str(decider.bundle.about["versions"]["offload-jax"])


def _authorise(request: Request, token: str | None) -> None:
    if token is None:
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise Refused(401, "the Authorization header must be 'Bearer' and the service's token")


async def _body(request: Request, most: int) -> bytes:
    """The body, read no further than allowed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Refused(413, f"the body is longer than {most} bytes")
    return bytes(body)


def _instances(decider: Decider, body: bytes, most: int) -> tuple[list[Any], bool]:
    """The instances of a body, and whether it is an array."""
    several = body.lstrip()[:1] == b"["
    try:
        loaded = json.loads(body) if several else None
        if isinstance(loaded, list) and not 1 <= len(loaded) <= most:
            raise Refused(422, f"the body holds {len(loaded)} instances; must be 1..{most}", "body")
    except (ValueError, RecursionError):
        loaded = None  # the reader says where it is no JSON
    try:
        return decider.parse(body, "body"), several
    except SchemaError as error:
        raise Refused(422, str(error), error.path) from None


def _openapi(decider: Decider, secured: bool) -> dict[str, Any]:
    """What FastAPI cannot know, as bodies are read by the readers of instance files."""
    schemas = {
        name: {key: value for key, value in schema.items() if key != "$schema"}
        for name, schema in decider.bundle.schemas.items()
    }

    def content(schema: dict[str, Any]) -> dict[str, Any]:
        either = {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}
        return {"content": {"application/json": {"schema": either}}}

    extra: dict[str, Any] = {
        "requestBody": {"required": True, **content(schemas["request"])},
        "responses": {"200": {"description": "The plans.", **content(schemas["answer"])}},
    }
    return extra | ({"security": [{"bearer": []}]} if secured else {})


_REFUSED = {
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"detail": {}, "field": {"type": ["string", "null"]}},
                "required": ["detail"],
            }
        }
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The bearer token is missing or wrong.", **_REFUSED},
    413: {"description": "The body is too long.", **_REFUSED},
    422: {"description": "The body or a parameter is wrong; `field` says which.", **_REFUSED},
    503: {"description": "Too much waits already; try again later.", **_REFUSED},
}
