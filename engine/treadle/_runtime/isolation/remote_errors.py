"""What a body has raised in a worker, as an exception here."""

from __future__ import annotations

import builtins
import sys
from types import FunctionType

from treadle.contracts import Raised
from treadle.errors import EncodeError, RemoteError, TreadleError
from treadle.storage import codecs


def rebuilt(raised: Raised) -> BaseException:
    """What the body raised, as its own type if that is imported here already, else as ``RemoteError``.

    Nothing is imported by name, and only classes derived from ``Exception`` are made; ``SystemExit`` and
    ``KeyboardInterrupt`` stay what they are, and end the step only.
    """
    module, _, name = raised.type_name.partition(":")
    kind: object = sys.modules.get(module, builtins if module == "builtins" else None)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    error: BaseException | None = None
    if isinstance(kind, type) and issubclass(kind, (Exception, SystemExit, KeyboardInterrupt)):
        try:
            error = _instance(kind, raised)
        except Exception:
            error = None
    if error is None:
        text = f"{name}: {raised.message}" if raised.message else name
        error = RemoteError(text, type_name=raised.type_name, traceback_text=raised.traceback)
    for note in raised.notes:
        _add_note(error, note)
    _add_note(error, f"traceback in the worker:\n{raised.traceback}")
    return error


def _instance(kind: type[BaseException], raised: Raised) -> BaseException | None:
    if not raised.arguments:
        return None
    arguments = codecs.decode("msgpack", raised.arguments, trusted=False)
    state = codecs.decode("msgpack", raised.state, trusted=False) if raised.state else {}
    if issubclass(kind, TreadleError):
        error: BaseException = kind.__new__(kind)
        error.args = tuple(arguments)
    else:
        # Not by its own __init__: what that was given is not what it has passed on to be the exception's arguments.
        error = kind.__new__(kind, *arguments)
        built_in = next(
            base for base in kind.__mro__ if "__init__" in vars(base) and not _is_python(vars(base)["__init__"])
        )
        vars(built_in)["__init__"](error, *arguments)
    if type(error) is not kind:
        return None
    error.__dict__.update(state)
    if issubclass(kind, EncodeError):
        error.__dict__.setdefault("value", None)  # the object stayed in its process
    return error


def _is_python(fn: object) -> bool:
    return isinstance(fn, FunctionType)


def _add_note(error: BaseException, note: str) -> None:
    try:
        error.add_note(note)
    except Exception:
        return  # a frozen dataclass, for example, allows none
