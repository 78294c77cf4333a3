"""Holds values to the annotations of a step: what an upstream gave it, and what it returned where a kind is named.

Which annotations can be checked, ``_core.expected`` knows. A literal that the user passed is the user's own affair, as
in a plain call, unless a ``Model``, ``Dataset`` or ``Metrics`` is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treadle._core.expected import KINDS
from treadle.errors import StepTypeError
from treadle.kinds import Asset

if TYPE_CHECKING:
    from treadle._core.expected import Wanted
    from treadle._runtime.plan import Plan


def check_input(plan: Plan, parameter: str, value: Any, *, is_linked: bool) -> None:
    """Refuse a value that its parameter's annotation does not allow.

    Args:
        plan: of the step.
        parameter: its name.
        value: as the body would get it.
        is_linked: whether it comes from another call, or from an artifact.

    Raises:
        StepTypeError: before the body.
    """
    assert plan.expected is not None
    want = plan.expected.parameters.get(parameter)
    if want is None or not (is_linked or want.is_kind) or want.fits(value):
        return
    origin = "its upstream gave" if is_linked else "it was given"
    raise _error(plan, parameter, want, value, f"parameter {parameter!r} of step {plan.name} is annotated", origin)


def check_outputs(plan: Plan, values: Sequence[Any]) -> None:
    """Refuse outputs that are not the ``Model``, ``Dataset`` or ``Metrics`` that the annotation promises.

    Raises:
        StepTypeError: for the first such one.
    """
    assert plan.promised is not None
    for name, value in zip(plan.output_names, values, strict=True):
        want = plan.promised.get(name)
        if want is not None and not want.fits(value):
            what = "the result" if len(values) == 1 else f"output {name!r}"
            raise _error(plan, "return", want, value, f"{what} of step {plan.name} is annotated", "the body returned")


def _error(plan: Plan, parameter: str, want: Wanted, value: Any, what: str, origin: str) -> StepTypeError:
    kind = type(value)
    got = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return StepTypeError(
        f"{what} {want.text}, and {origin} {got}",
        fix=_fix(want, value, parameter),
        step=plan.name,
        parameter=parameter,
        expected=want.text,
        got=got,
    )


def _fix(want: Wanted, value: Any, parameter: str) -> str:
    if isinstance(value, Asset) and want.fits(value.value):
        return f"annotate {type(value).__name__} and use its .value, or pass on the .value"
    if want.is_kind and not isinstance(value, Asset):
        kind = next(kind.__name__ for kind in want.types if issubclass(kind, KINDS))
        return f"wrap the object: return {kind}({'acc=0.9' if kind == 'Metrics' else 'obj, name=...'})"
    return "mend the annotation, or convert the value" + ("" if parameter == "return" else " where it is made")
