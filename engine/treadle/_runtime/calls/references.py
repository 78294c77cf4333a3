"""The futures among the arguments of a call, found before there is a call: what it will have to wait for."""

from __future__ import annotations

from collections.abc import Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from treadle._core.binding import CONTAINERS, PLAIN, find, hidden, replace
from treadle._runtime.calls.call import StepFuture
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.maps.unmapped import Unmapped
from treadle._runtime.plan import Plan
from treadle.errors import ForeignFuture, HiddenFuture
from treadle.options import UNSET

if TYPE_CHECKING:
    from treadle._runtime.run import Run

References = (StepFuture, MapFuture)
Reference = StepFuture[Any] | MapFuture[Any]
Args = tuple[Any, ...]

SUBMITTED = "_submitted"
"""Name of the coroutine function behind ``await step(...)``."""


def awaited_by(
    run: Run, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any] | None, after: Any
) -> Sequence[Reference]:
    """The futures that a call would have to wait for, found before there is a call.

    Raises:
        ForeignFuture: one belongs to another run.
        TypeError: an argument is a call that was not submitted.
    """
    found: Sequence[Reference] = ()
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) not in PLAIN:
            found = [*found, *_references_in(run, plan, value)]
    return found if after is UNSET else [*found, *_references_in(run, plan, after)]


def _references_in(run: Run, plan: Plan, value: Any) -> list[Reference]:
    kind = type(value)
    if kind is StepFuture and value._call.run.id == run.id:
        return [value]
    if isinstance(value, Unmapped):
        value = value.value
    elif type(value) is CoroutineType and value.cr_code.co_name == SUBMITTED:
        raise TypeError(
            f"an argument of {plan.name} is a call of {value.__name__} that nobody has awaited: await it, or pass"
            f" {value.__name__}.submit(...), whose value arrives by itself"
        )
    found = list(find((value,), References))
    if kind is not MapFuture:
        _refuse_hidden(plan, value)
    for reference in found:
        if (reference.run if isinstance(reference, MapFuture) else reference._call.run).id != run.id:
            raise ForeignFuture(
                f"a call of {plan.name} got {reference!r}, which belongs to another run",
                fix="await it where it belongs and pass its value, or its .artifact",
            )
        if isinstance(reference, MapFuture):
            reference.keep_all()
    return found


def _refuse_hidden(plan: Plan, value: Any) -> None:
    for holder, reference in hidden(value, References):
        kind = type(holder).__qualname__
        place = "as a key of a dict" if type(holder) is dict else f"inside of a {kind}"
        raise HiddenFuture(
            f"an argument of {plan.name} has {reference!r} {place}, where nobody would put its value",
            fix=f"pass the future by itself, or in a plain list, tuple, dict (as a value) or set, and make the {kind}"
            " in the step; or await it before",
        )


def kept(args: Args, kwargs: dict[str, Any] | None) -> tuple[Args, Any]:
    """The arguments, lists and dicts of futures as they are now: the caller may fill them further for other calls."""
    if not CONTAINERS.isdisjoint(map(type, args)):
        args = tuple([replace(value, References, _itself) for value in args])
    if kwargs and not CONTAINERS.isdisjoint(map(type, kwargs.values())):
        kwargs = {name: replace(value, References, _itself) for name, value in kwargs.items()}
    return args, kwargs


def _itself(reference: Any) -> Any:
    return reference
