"""treadle: an embedded, asyncio-native execution engine for pipelines of steps.

``@step`` makes a function a tracked, cached, durable step; ``@pipeline`` makes a function whose step calls become one
run; ``Engine`` is what a service opens once. Errors are in ``treadle.errors``, the facts in the log in
``treadle.events``, the contracts for adapters in ``treadle.contracts``.

The map of the package: ``_core`` decides (states, keys, retries, replay), without loop, clock or disk; ``_runtime``
performs (``lifecycle`` is the life of one call, ``run`` of one run); ``storage`` keeps (the log, artifacts, codecs);
``testing`` is the kit for tests of your own.
"""

from treadle._runtime.artifact import Artifact
from treadle._runtime.call import StepFuture
from treadle._runtime.current import current
from treadle._runtime.engine import Engine
from treadle._runtime.handle import RunHandle
from treadle._runtime.mapping import MapFuture
from treadle._runtime.pipeline import pipeline
from treadle._runtime.results import RunResult, StepResult
from treadle._runtime.sources import unmapped
from treadle._runtime.step import step
from treadle.errors import EncodeError, TreadleError
from treadle.options import CachePolicy, Keep, Retry

__all__ = [
    "Artifact",
    "CachePolicy",
    "EncodeError",
    "Engine",
    "Keep",
    "MapFuture",
    "Retry",
    "RunHandle",
    "RunResult",
    "StepFuture",
    "StepResult",
    "TreadleError",
    "current",
    "pipeline",
    "step",
    "unmapped",
]
