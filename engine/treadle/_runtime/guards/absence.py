"""What an output that a condition left out is to the calls that take it: a default, ``None``, or a skip of their own.

Knows arguments; who waits for whom is in ``lifecycle``.
"""

from __future__ import annotations

from typing import Any

from treadle._runtime.calls.call import Call, StepFuture
from treadle._runtime.maps.unmapped import Unmapped


def is_left_out(call: Call) -> bool:
    """Whether an ended call was skipped by a condition, its own or another's, and not because of a failure."""
    return call.outcome == "skipped" and call.error is None


def take(call: Call, producer: Call) -> None:
    """An input will not come.

    Where it is an argument of its own, the parameter's default is used, or the call lacks it. Inside of a list, a
    dict, ``*args`` or ``**kwargs`` it is ``None``.
    """
    binder = call.plan.binder
    positions = binder.positional[: len(call.args)]
    missing = [name for name, value in zip(positions, call.args, strict=False) if _is_output_of(value, producer)]
    missing += [
        name
        for name, value in (call.kwargs or {}).items()
        if name in binder.named and name not in positions and _is_output_of(value, producer)
    ]
    if not missing:
        return
    if all(name in binder.defaults for name in missing):
        _leave_to_defaults(call, missing)
    else:
        call.lacks = call.lacks or producer.name


def _is_output_of(value: Any, producer: Call) -> bool:
    if isinstance(value, Unmapped):
        value = value.value
    return isinstance(value, StepFuture) and value._call is producer


def _leave_to_defaults(call: Call, missing: list[str]) -> None:
    """Drop arguments, so that the parameters' defaults count; what follows one of them is passed by name then."""
    binder = call.plan.binder
    names = binder.positional[: len(call.args)]
    first = next((index for index, name in enumerate(names) if name in missing), len(call.args))
    kept = {name: value for name, value in (call.kwargs or {}).items() if name not in missing or name in names}
    after = [name for name in names[first:] if name not in missing]
    if len(call.args) > len(names) or not set(after) <= set(binder.by_name):
        filled = [
            binder.defaults[name] if name in missing else value for name, value in zip(names, call.args, strict=False)
        ]
        call.args = (*filled, *call.args[len(names) :])  # what follows can be passed by position only
    else:
        named = {name: value for name, value in zip(names, call.args, strict=True) if name in after}
        call.args, kept = call.args[:first], {**named, **kept}
    call.kwargs = kept or None
