"""Which engine serves the current code: the one of the context, of the loop, or a default one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from treadle._runtime.context import active_engine

if TYPE_CHECKING:
    import asyncio

    from treadle._runtime.engine import Engine
    from treadle._runtime.pipeline import PipelineFn

_open: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Engine]] = WeakKeyDictionary()
_opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Future[Engine]] = WeakKeyDictionary()
_guards: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = WeakKeyDictionary()

factory: Callable[[], Engine]
"""Makes a default engine; set by the module that defines engines."""


def entered(engine: Engine) -> None:
    """An engine was opened on this loop."""
    _open.setdefault(engine.loop, []).append(engine)


def left(engine: Engine) -> None:
    """An engine was closed."""
    engines = _open.get(engine.loop, [])
    if engine in engines:
        engines.remove(engine)


def engine_here(target: PipelineFn[..., object] | None = None) -> Engine | None:
    """The engine for a run that starts here, if one is open: the pipeline's own, the context's, the innermost one."""
    if target is not None and target.options.engine:
        chosen: Engine = target.options.engine
        return chosen
    import asyncio  # whoever only defines steps does without

    loop = asyncio.get_running_loop()
    engine = active_engine.get()
    if engine is not None and engine.is_open and engine.loop is loop:
        return engine
    engines = _open.get(loop)
    return engines[-1] if engines else None


async def default_engine() -> Engine:
    """The default engine of the running loop, opened at first use and closed with the loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    opening = _opening.get(loop)
    if opening is None:
        opening = _opening[loop] = loop.create_future()
        engine = factory()  # noqa: F821  # the module that defines engines assigns it
        try:
            await engine.open()
        except BaseException as error:
            _opening.pop(loop, None)
            if not isinstance(error, Exception):
                opening.cancel()
                raise
            opening.set_exception(error)
            opening.exception()
            raise
        guard = _close_with_loop(engine)
        await anext(guard)
        _guards[loop] = guard
        opening.set_result(engine)
        return engine
    engine = await asyncio.shield(opening)
    if not engine.is_open:
        _opening.pop(loop, None)
        return await default_engine()
    return engine


async def _close_with_loop(engine: Engine) -> AsyncGenerator[None, None]:
    """Finalised by ``loop.shutdown_asyncgens``, which asyncio and uvloop call before they close the loop."""
    try:
        yield
    finally:
        await engine.close()
