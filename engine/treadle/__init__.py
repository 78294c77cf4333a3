"""treadle: an embedded, asyncio-native execution engine for pipelines of steps.

``@step`` makes a function a tracked, cached, durable step; ``@pipeline`` makes a function whose step calls become one
run; ``Engine`` is what a service opens once. Errors are in ``treadle.errors``, the facts in the log in
``treadle.events``, the contracts for adapters in ``treadle.contracts``.

The map of the package: ``_core`` decides (states, keys, retries, replay), without loop, clock or disk; ``_runtime``
performs (``lifecycle`` is the life of one call, ``run`` of one run); ``storage`` keeps (the log, artifacts, codecs);
``testing`` is the kit for tests of your own.
"""

from typing import TYPE_CHECKING, Any

from treadle._core.parameters import context
from treadle._runtime.current import current
from treadle._runtime.decorators import on_failure, retry, unless, when
from treadle._runtime.engine import Engine
from treadle._runtime.pipeline import pipeline
from treadle._runtime.policies import CircuitBreaker
from treadle._runtime.step import step
from treadle._runtime.unmapped import unmapped
from treadle.errors import EncodeError, TreadleError
from treadle.kinds import Dataset, Metrics, Model
from treadle.limits import Resources
from treadle.options import CachePolicy, Keep, Retry

if TYPE_CHECKING:
    from treadle._runtime.artifact import Artifact
    from treadle._runtime.call import StepFuture
    from treadle._runtime.gathering import amap
    from treadle._runtime.handle import RunHandle
    from treadle._runtime.mapping import MapFuture
    from treadle._runtime.parallel import parallel_map
    from treadle._runtime.results import RunResult, StepResult
    from treadle._runtime.wired import Pipeline

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
    "Artifact": "artifact",
    "MapFuture": "mapping",
    "Pipeline": "wired",
    "RunHandle": "handle",
    "RunResult": "results",
    "StepFuture": "call",
    "StepResult": "results",
    "amap": "gathering",
    "parallel_map": "parallel",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"treadle._runtime.{_LATE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
