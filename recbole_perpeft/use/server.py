"""A service behind HTTP, with FastAPI; this module needs the extra `serve`."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from recbole_perpeft import __version__
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.use.service import MAX_BODY_BYTES, MAX_HISTORY, MAX_K, MAX_LISTS, Service, TooBusyError

_SECONDS_TO_STOP = 30  # for requests that are at work when the server is told to stop
_TEXTS = {"type": "array", "items": {"type": "string"}}
_BODY = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "users": _TEXTS | {"description": f"ids of users of the log; {MAX_LISTS} users and histories at most"},
        "histories": {
            "type": "array",
            "items": _TEXTS | {"minItems": 1, "maxItems": MAX_HISTORY},
            "description": "item ids of anybody, oldest first",
        },
        "k": {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10},
        "include_seen": {"type": "boolean", "default": False, "description": "keep items of the history"},
        "include_new_items": {"type": "boolean", "default": False, "description": "also items without interactions"},
    },
    "example": {"users": ["U1"], "histories": [["ITEM1", "ITEM2"]], "k": 10},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "what is wrong, in a sentence"}},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in ((400, "The request is wrong"), (503, "Too many requests wait"))
}


def app_of(service: Service) -> FastAPI:
    """The routes of a service, which runs while the application does."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        with service:
            yield

    app = FastAPI(title="recbole-perpeft", version=__version__, lifespan=running)
    _tell_errors(app)
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}}

    @app.post("/recommend", responses=_ERRORS, openapi_extra=body)
    async def recommend(request: Request) -> JSONResponse:
        """Lists of users and for histories."""
        future = service.submit(await _json(request))
        return JSONResponse({"lists": await asyncio.wrap_future(future)})

    @app.get("/items/{item_id:path}/similar", responses=_ERRORS)
    def similar(item_id: str, group: int | None = None, k: int = 10) -> JSONResponse:
        """Items like one, in the eyes of a group."""
        return JSONResponse({"items": service.similar(item_id, group, k)})

    # These are answered by the loop itself: they must not wait for threads that are at work.
    @app.get("/groups")
    async def groups() -> dict[str, Any]:
        """Groups of users."""
        return {"groups": service.groups()}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """What is served."""
        return service.health()

    return app


def _tell_errors(app: FastAPI) -> None:
    """All that goes wrong is answered in one form: `error`, a sentence."""

    @app.exception_handler(PerPEFTError)
    async def wrong(_: Request, error: PerPEFTError) -> JSONResponse:
        return _told(str(error), 400)

    @app.exception_handler(TooBusyError)
    async def busy(_: Request, error: TooBusyError) -> JSONResponse:
        return _told(str(error), 503)

    @app.exception_handler(RequestValidationError)
    async def no_value(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _told(f"{first['loc'][-1]} is {first['input']!r}: {first['msg']}", 400)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        told = _told(f"{request.method} {request.url.path}: {error.detail}; /openapi.json has all", error.status_code)
        told.headers.update(error.headers or {})
        return told

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return _told(f"unforeseen {type(error).__name__}: the log of the server has more", 500)


def _told(error: str, status: int) -> JSONResponse:
    # JSON can write halves of characters, which UTF-8 cannot: the answer shows them as escapes.
    return JSONResponse({"error": error.encode("utf-8", "backslashreplace").decode()}, status)


async def _json(request: Request) -> Any:
    """The body, of which no more is read than may be sent, and nothing where more is announced."""
    too_large = PerPEFTError(f"a request has at most {MAX_BODY_BYTES:,} bytes")
    if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise PerPEFTError(f"a request is JSON, this is not: {error}") from error


def bound(host: str, port: int) -> socket.socket:
    """The address, taken before a model is loaded; who asks is refused until the server listens.

    Raises:
        PerPEFTError: There is no such address, or another program has it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from error
    return taken


def _cannot_listen(host: str, port: int, error: Exception) -> PerPEFTError:
    reason = getattr(error, "strerror", None) or error
    return PerPEFTError(f"cannot listen at {host}, port {port}: {reason}; give another --host or --port")


def serve(service: Service, address: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM; requests that are at work then are still answered.

    Raises:
        PerPEFTError: Another program listens there by now.
    """
    try:
        address.listen()
    except OSError as error:
        host, port = address.getsockname()[:2]
        raise _cannot_listen(host, port, error) from error
    # Its own settings of logs would close the handlers that are there.
    config = uvicorn.Config(
        app_of(service),
        access_log=False,
        timeout_graceful_shutdown=_SECONDS_TO_STOP,
        log_level="warning",
        log_config=None,
    )
    try:
        uvicorn.Server(config).run(sockets=[address])
    except KeyboardInterrupt:  # uvicorn has stopped in order and tells who called it
        pass
