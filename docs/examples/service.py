"""A web service whose handlers await a durable pipeline: disconnects cancel, SIGTERM drains, a restart recovers.

    python -m uvicorn --app-dir docs/examples service:app --timeout-graceful-shutdown 5

    curl -X POST localhost:8000/orders -d '{"item": "tea", "count": 2}'
    curl -X POST localhost:8000/jobs -H 'Idempotency-Key: order-1' -d '{"item": "tea", "count": 2}'

The home is ``$TREADLE_HOME``, else ``.treadle`` beside the project's files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from treadle import Engine, current, pipeline, step
from treadle.errors import IdempotencyConflict, RunNotFound

T = TypeVar("T")
Order = dict[str, Any]


# -- the pipeline -------------------------------------------------------------------------


@step
async def reserve(order: Order) -> int:
    return int(order["count"])


@step(retry=2, timeout=30)
async def charge(order: Order, reserved: int) -> dict[str, Any]:
    await asyncio.sleep(float(os.environ.get("BANK_TAKES_S", "0.02")))
    # The token is the same for every attempt and after every crash: a bank that knows it charges once.
    return {"cents": 350 * reserved, "token": current().token}


@step
async def confirm(order: Order, payment: dict[str, Any]) -> dict[str, Any]:
    return {"item": order["item"], "paid": payment["cents"]}


@pipeline
async def fulfil(order: Order) -> dict[str, Any]:
    reserved = await reserve(order)
    payment = await charge(order, reserved)
    return await confirm(order, payment)


# -- the handlers -------------------------------------------------------------------------


async def post_order(request: Request) -> Response:
    """The client waits, and the run is its own: when it hangs up, the run is cancelled."""
    order = await request.json()
    try:
        return JSONResponse(await unless_gone(request, fulfil(order)))
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads this


async def post_job(request: Request) -> Response:
    """The client gets an id at once; the run goes on without it, and a repeated request joins it."""
    engine: Engine = request.app.state.engine
    job = fulfil.with_options(idempotency_key=request.headers.get("idempotency-key"))
    try:
        handle = await engine.start(job, await request.json())
    except IdempotencyConflict as conflict:
        return JSONResponse({"error": str(conflict)}, status_code=409)
    return JSONResponse({"id": handle.id}, status_code=202, headers={"location": f"/runs/{handle.id}"})


async def get_run(request: Request) -> Response:
    """What the log knows, also of runs of an earlier process."""
    engine: Engine = request.app.state.engine
    try:
        result = await engine.get_run(request.path_params["id"])
    except RunNotFound:
        return JSONResponse({"error": "no such run"}, status_code=404)
    steps = {name: step.status for name, step in result.step_results.items()}
    value = result.value if result.success else None
    return JSONResponse({"id": result.run_id, "status": result.status, "steps": steps, "value": value})


async def get_health(request: Request) -> Response:
    """For the load balancer."""
    health = request.app.state.engine.health()
    return JSONResponse(health, status_code=200 if health["status"] == "ok" else 503)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await something for a client, and cancel it when the client hangs up.

    Starlette tells a handler of a disconnect only if the handler listens; the body must have been read before.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait((task, gone))


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# -- the application ----------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One engine per process; what the last process left unfinished is taken up again."""
    async with Engine(cache=False, close_timeout=3) as engine:
        app.state.engine = engine
        await engine.recover(wait=False)
        yield


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/orders", post_order, methods=["POST"]),
        Route("/jobs", post_job, methods=["POST"]),
        Route("/runs/{id}", get_run),
        Route("/health", get_health),
    ],
)
