"""A service behind HTTP, with FastAPI; this module needs the extra `serve`."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from recbole_perpeft import __version__
from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.use.service import MAX_BODY_BYTES, Service, TooBusyError


def app_of(service: Service) -> FastAPI:
    """The routes of a service, which runs while the application does."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        with service:
            yield

    app = FastAPI(title="recbole-perpeft", version=__version__, lifespan=running)

    @app.exception_handler(PerPEFTError)
    async def told(_: Request, error: PerPEFTError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503 if isinstance(error, TooBusyError) else 400)

    @app.post("/recommend")
    async def recommend(request: Request) -> dict[str, Any]:
        """Lists of users and for histories."""
        future = service.submit(await _json(request))
        return {"lists": await asyncio.wrap_future(future)}

    @app.get("/items/{item_id:path}/similar")
    def similar(item_id: str, group: int | None = None, k: int = 10) -> dict[str, Any]:
        """Items like one, in the eyes of a group."""
        return {"items": service.similar(item_id, group, k)}

    @app.get("/groups")
    def groups() -> dict[str, Any]:
        """Groups of users."""
        return {"groups": service.groups()}

    @app.get("/health")
    def health() -> dict[str, Any]:
        """What is served."""
        return service.health()

    return app


async def _json(request: Request) -> Any:
    """The body, of which no more is read than may be sent."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise PerPEFTError(f"a request has at most {MAX_BODY_BYTES:,} bytes")
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise PerPEFTError(f"a request is JSON, this is not: {error}") from error
