"""treadle: an embedded, asyncio-native execution engine for pipelines of steps.

``@step`` makes a function a tracked, cached, durable step; ``@pipeline`` makes a function whose step calls become one
run; ``Engine`` is what a service opens once. Errors are in ``treadle.errors``, the facts in the log in
``treadle.events``, the contracts for adapters in ``treadle.contracts``.

The map of the package: ``_core`` decides (states, keys, retries, replay), without loop, clock or disk; ``_runtime``
performs (``lifecycle`` is the life of one call, ``run`` of one run; its folders say what else there is); ``storage``
keeps (the log, artifacts, codecs); ``testing`` is the kit for tests of your own.
"""

from typing import TYPE_CHECKING, Any

from treadle._core.parameters import context
from treadle._runtime.current import current
from treadle._runtime.engine import Engine
from treadle._runtime.guards.decorators import on_failure, retry, unless, when
from treadle._runtime.guards.policies import CircuitBreaker
from treadle._runtime.maps.unmapped import unmapped
from treadle._runtime.pipeline import pipeline
from treadle._runtime.step import step
from treadle.errors import EncodeError, TreadleError
from treadle.kinds import Dataset, Metrics, Model
from treadle.limits import Resources
from treadle.options import CachePolicy, Keep, Retry
from treadle.secret import Secret

if TYPE_CHECKING:
    from treadle._runtime.calls.call import StepFuture
    from treadle._runtime.handle import RunHandle
    from treadle._runtime.maps.mapping import MapFuture
    from treadle._runtime.parallel.gathering import amap
    from treadle._runtime.parallel.items import parallel_map
    from treadle._runtime.static.wired import Pipeline
    from treadle._runtime.views.artifact import Artifact
    from treadle._runtime.views.results import RunResult
    from treadle._runtime.views.step_results import StepResult

__all__ = [
    "Artifact",
    "CachePolicy",
    "CircuitBreaker",
    "Dataset",
    "EncodeError",
    "Engine",
    "Keep",
    "MapFuture",
    "Metrics",
    "Model",
    "Pipeline",
    "Resources",
    "Retry",
    "RunHandle",
    "RunResult",
    "Secret",
    "StepFuture",
    "StepResult",
    "TreadleError",
    "amap",
    "context",
    "current",
    "on_failure",
    "parallel_map",
    "pipeline",
    "retry",
    "step",
    "unless",
    "unmapped",
    "when",
]

# Their modules need the event loop and the log, which a program that only defines steps, or a worker that imports
# them, may never use: they are loaded when somebody asks for them.
_LATE = {
    "Artifact": "views.artifact",
    "MapFuture": "maps.mapping",
    "Pipeline": "static.wired",
    "RunHandle": "handle",
    "RunResult": "views.results",
    "StepFuture": "calls.call",
    "StepResult": "views.step_results",
    "amap": "parallel.gathering",
    "parallel_map": "parallel.items",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"treadle._runtime.{_LATE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
