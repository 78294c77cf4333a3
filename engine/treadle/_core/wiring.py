"""Names to edges: which step's output is which step's parameter, and what is missing; pure.

A parameter gets, in this order, the output of its name, what ``run(inputs=)`` gives, what the context has, and its
default. A *declared* input belongs to the parameter of its name, else to the one at its position. Outputs that are not
declared are one, named as the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

SUGGESTIONS = 20
"""Names are compared for so many problems; among 10,000 names that takes a while."""

WARNINGS = 5
"""So many steps that nobody uses are named."""


class Member(NamedTuple):
    """A step as the wiring sees it: the call's name, the function's signature, and the names it declares.

    ``positional`` are the parameters that take an argument by position; it ``is_plain`` if these are all, and each
    takes one by name, too.
    """

    call: str
    parameters: Mapping[str, inspect.Parameter]
    positional: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    where: str = ""
    is_plain: bool = False


class Produced(NamedTuple):
    """An argument that is the output of another member."""

    member: int
    output: str


class Given(NamedTuple):
    """An argument that ``run(inputs=)`` gives."""

    name: str


class FromContext(NamedTuple):
    """An argument by position that the context gives; by name it needs no mention."""

    name: str


class Constant(NamedTuple):
    """A default that has to be written out, since arguments by position follow it."""

    value: Any


Source = Produced | Given | FromContext | Constant


@dataclass(slots=True)
class Wiring:
    """What came of it: for each member its arguments by position and by name, and the members that they come from."""

    args: list[Sequence[Source]] = field(default_factory=list)
    kwargs: list[Mapping[str, Source]] = field(default_factory=list)
    needs: list[list[int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


_NONE: Mapping[str, Source] = {}


def wire(members: Sequence[Member], given: Collection[str], context: Collection[str]) -> Wiring:
    """Connect steps by names.

    Args:
        members: the steps, in the order in which they were added.
        given: the names in ``run(inputs=)``.
        context: the names in the context.
    """
    return _Wirer(members, given, context).wire()


class _Wirer:
    def __init__(self, members: Sequence[Member], given: Collection[str], context: Collection[str]) -> None:
        self._members, self._given, self._context = members, given, context
        self._producers: dict[str, int] = {}
        self._asked: set[str] = set()
        self._used: set[str] = set()
        self._suggestions = 0
        self._wiring = Wiring()

    def wire(self) -> Wiring:
        self._find_producers()
        for index, member in enumerate(self._members):
            bound: dict[str, Source] = {}
            if member.inputs:
                self._bind_declared(member, bound)
            self._bind_by_name(index, member, bound)
            args, kwargs = _placed(member, bound)
            self._wiring.args.append(args)
            self._wiring.kwargs.append(kwargs)
            producers = [source.member for source in bound.values() if type(source) is Produced]
            self._wiring.needs.append(list(dict.fromkeys(producers)) if len(producers) > 1 else producers)
        self._check_given()
        self._warn_of_unused()
        return self._wiring

    def _find_producers(self) -> None:
        several: dict[str, list[int]] = {}
        for index, member in enumerate(self._members):
            for output in member.outputs:
                if output in self._producers:
                    several.setdefault(output, [self._producers[output]]).append(index)
                else:
                    self._producers[output] = index
        for output, indices in several.items():
            names = " and ".join(self._label(self._members[index]) for index in indices)
            self._say(
                f"output {output!r} has {len(indices)} producers: {names}; give each step outputs of its own, for a"
                " step that is added twice with step.with_options(outputs=[...])"
            )

    def _bind_declared(self, member: Member, bound: dict[str, Source]) -> None:
        parameters = member.parameters
        simple = _simple_claims(member) if member.is_plain else None
        if simple is not None:
            for parameter, name in zip(simple, member.inputs, strict=True):
                self._bind_asset(member, bound, parameter, name)
            return
        own = {name for name, parameter in parameters.items() if parameter.kind not in _COLLECTING}
        claims = {name: name for name in member.inputs if name in own}
        positional = member.positional
        kinds = {parameter.kind for parameter in parameters.values()}
        places = {name: position for position, name in enumerate(member.inputs)}
        for name, position in places.items():
            if name in own:
                continue
            if position < len(positional) and positional[position] not in claims:
                claims[positional[position]] = name
            elif position >= len(positional) and inspect.Parameter.VAR_POSITIONAL in kinds:
                claims[f"*{position}"] = name
            elif inspect.Parameter.VAR_KEYWORD in kinds and name.isidentifier():
                claims[name] = name
            else:
                self._used.add(name)
                self._say(f"{self._label(member)} declares input {name!r} and has no parameter for it")
        for parameter, name in sorted(claims.items(), key=lambda claim: places[claim[1]]):
            self._bind_asset(member, bound, parameter, name)

    def _bind_asset(self, member: Member, bound: dict[str, Source], parameter: str, name: str) -> None:
        self._asked.add(name)
        has_default = _has_default(member, parameter)
        if name in self._producers:
            bound[parameter] = Produced(self._producers[name], name)
        elif name in self._given:
            self._used.add(name)
            bound[parameter] = Given(name)
        elif parameter in self._context:
            bound[parameter] = FromContext(parameter)
        elif has_default:
            self._warn(f"{self._label(member)} takes its default for input {name!r}, which no step produces", name)
        else:
            self._say(
                f"{self._label(member)} needs input {name!r}, which no step produces and run(inputs=) does not give",
                name, self._producers,
            )  # fmt: skip

    def _bind_by_name(self, index: int, member: Member, bound: dict[str, Source]) -> None:
        claimed: Collection[str] | None = None
        for name, parameter in member.parameters.items():
            if name in bound or parameter.kind in _COLLECTING:
                continue
            claimed = _claimed(member) if claimed is None else claimed
            if name in claimed:
                continue
            self._asked.add(name)
            producer = self._producers.get(name, index)
            if producer != index:
                bound[name] = Produced(producer, name)
            elif name in self._given:
                self._used.add(name)
                bound[name] = Given(name)
            elif name in self._context:
                bound[name] = FromContext(name)
            elif parameter.default is inspect.Parameter.empty:
                self._say(
                    f"{self._label(member)} needs parameter {name!r}, which no step produces and neither run(inputs=)"
                    " nor the context gives",
                    name, (*self._producers, *self._given, *self._context),
                )  # fmt: skip

    # -- what is said ---------------------------------------------------------------------

    def _check_given(self) -> None:
        for name in self._given:
            if name in self._used:
                continue
            if name in self._producers:
                label = self._label(self._members[self._producers[name]])
                self._wiring.warnings.append(f"input {name!r} of the run is not used: {label} produces it")
            else:
                self._say(f"run(inputs=) gives {name!r}, which no step takes", name, self._asked)

    def _warn_of_unused(self) -> None:
        """Steps beside the graph: where others are connected, one that is not was probably forgotten."""
        connected = {index for index, needs in enumerate(self._wiring.needs) if needs}
        connected |= {producer for needs in self._wiring.needs for producer in needs}
        if connected:
            labels = [self._label(member) for index, member in enumerate(self._members) if index not in connected]
            self._wiring.warnings += [f"nobody uses {label}, and it uses no other step" for label in labels[:WARNINGS]]
            if len(labels) > WARNINGS:
                self._wiring.warnings.append(f"nobody uses {len(labels) - WARNINGS} more steps that use no other step")

    def _label(self, member: Member) -> str:
        return f"step {member.call} ({member.where})" if member.where else f"step {member.call}"

    def _warn(self, text: str, name: str) -> None:
        self._wiring.warnings.append(f"{text}{self._suggestion(name, self._producers)}")

    def _say(self, text: str, name: str = "", known: Iterable[str] = ()) -> None:
        self._wiring.problems.append(f"{text}{self._suggestion(name, known)}")

    def _suggestion(self, name: str, known: Iterable[str]) -> str:
        if not name or self._suggestions >= SUGGESTIONS:
            return ""
        self._suggestions += 1
        return near(name, known)


def _simple_claims(member: Member) -> list[str] | None:
    """The parameters of the declared inputs in their order, if each has one and none is meant twice."""
    places = member.positional
    claims: list[str] = []
    for position, name in enumerate(member.inputs):
        if name not in member.parameters:
            if position >= len(places) or places[position] in member.inputs:
                return None
            name = places[position]
        claims.append(name)
    return claims


def _placed(member: Member, bound: dict[str, Source]) -> tuple[Sequence[Source], Mapping[str, Source]]:
    """By position as far as the first gap, since short calls are quick ones, or as the signature asks for it."""
    parameters = member.parameters
    if member.is_plain and bound.keys() == parameters.keys():
        sources = [bound[name] for name in member.positional]
        if not any(type(source) is FromContext for source in sources):
            return sources, _NONE
    extra = [source for name, source in bound.items() if name[:1] == "*"]
    last = len(member.positional) - 1 if extra else _last_positional_only(member, bound)
    args: dict[str, Source] = {}
    for index, name in enumerate(member.positional):
        source = bound.get(name)
        if index > last and (source is None or isinstance(source, FromContext)):
            break
        if source is not None or _has_default(member, name):
            args[name] = source if source is not None else Constant(parameters[name].default)
    kwargs = {
        name: source
        for name, source in bound.items()
        if name[:1] != "*" and name not in args and not isinstance(source, FromContext)
    }
    return [*args.values(), *extra], kwargs


def _claimed(member: Member) -> Collection[str]:
    """Parameters that a declared input is meant for, also if it could not be bound; that has been said."""
    if not member.inputs:
        return ()
    parameters = member.parameters
    pairs = zip(member.inputs, member.positional, strict=False)
    return {*member.inputs, *(place for name, place in pairs if name not in parameters)}


def _last_positional_only(member: Member, bound: dict[str, Source]) -> int:
    parameters = member.parameters
    for index in reversed(range(len(member.positional))):
        name = member.positional[index]
        if parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY and name in bound:
            return index
    return -1


def _has_default(member: Member, parameter: str) -> bool:
    known = member.parameters.get(parameter)
    return known is not None and known.default is not inspect.Parameter.empty


def near(name: str, known: Iterable[str]) -> str:
    """A hint at the name that was probably meant, or nothing.

    >>> near("dta", ["data", "model"])
    "; did you mean 'data'?"
    """
    import difflib  # only a mistake pays for it

    found = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def circle_text(names: Sequence[str]) -> str:
    """A circle as a reader follows it.

    >>> circle_text(["a", "b"])
    'steps wait for each other in a circle: a -> b -> a; rename what one of them takes, or what it gives'
    """
    circle = " -> ".join([*names, names[0]])
    return f"steps wait for each other in a circle: {circle}; rename what one of them takes, or what it gives"
