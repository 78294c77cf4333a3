"""``treadle.current()``: what the body of a step may know and say of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle._runtime.context import active_call
from treadle.errors import EncodeError, NotInRun, OptionError
from treadle.secret import masked_facts

if TYPE_CHECKING:
    from treadle import events as ev
    from treadle._runtime.calls.call import Call


class Current:
    """The call whose body is running; obtained with ``treadle.current()``."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._call.run.id

    @property
    def call(self) -> str:
        """The call's name."""
        return self._call.name

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1; a resume goes on counting."""
        return self._call.attempt

    @property
    def deadline(self) -> float | None:
        """When this attempt times out: seconds since the epoch, or ``None``."""
        timeout = self._call.plan.timeout
        return None if timeout is None else self._call.attempt_at + timeout

    @property
    def token(self) -> str:
        """A text that is the same for all attempts and resumes of this call, for outside interfaces that take one."""
        from blake3 import blake3  # here and below: a program that only imports treadle does without

        # With the identity: a call whose start was never logged may have another name after a resume, and another
        # call its name.
        named = f"{self._call.run.id}/{self._call.name}/".encode()
        return blake3(named + self._call.identity).hexdigest()[:32]

    def log_metadata(self, **facts: Any) -> None:
        """Attach facts (plain data) to this call.

        Raises:
            EncodeError: a fact is not plain data.
        """
        from treadle import events as ev

        body = self._packed(facts)
        at, step = self._call.run.now(), self._call.plan.name
        self._append(ev.MetadataLogged(at=at, call=self.call, step=step, attempt=self.attempt, body=body))

    def progress(self, done: float, total: float | None = None) -> None:
        """Say how far the step is.

        Raises:
            OptionError: that is no number.
        """
        from treadle import events as ev

        done, total = _number("done", done), None if total is None else _number("total", total)
        at, step = self._call.run.now(), self._call.plan.name
        self._append(ev.Progressed(at=at, call=self.call, step=step, attempt=self.attempt, done=done, total=total))

    @staticmethod
    def _packed(facts: dict[str, Any]) -> bytes:
        import msgspec

        try:
            return msgspec.msgpack.encode(masked_facts(facts))
        except (TypeError, OverflowError) as error:
            raise EncodeError(
                "metadata has to be plain data", why=str(error), fix="pass numbers, texts, lists and dicts"
            ) from None

    def _append(self, event: ev.Event) -> None:
        engine = self._call.run.engine
        if engine.is_on_loop():
            self._append_here(event)
        else:
            engine.call_on_loop(self._append_here, event)

    def _append_here(self, event: ev.Event) -> None:
        if not self._call.is_settled:  # the thread of a call that was cancelled or timed out may go on talking
            self._call.run.append(event)

    def __repr__(self) -> str:
        return f"<current call {self.call} of run {self.run_id}, attempt {self.attempt}>"


def _number(name: str, value: Any) -> float:
    if type(value) is float or (type(value) is int and abs(value) < 2**53):
        return value
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError("it is text")
        return float(value)  # of numpy, say
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(
            f"progress({name}={value!r:.100}) is no number", why=str(error), fix="give a float or an int", option=name
        ) from None


def current() -> Current:
    """The call whose body is running here; works in worker threads too.

    Raises:
        NotInRun: this is not the body of a step in a run.
    """
    call = active_call.get()
    if call is None:
        raise NotInRun(
            "current() was called outside of a step in a run", fix="call it in the body of a step that a pipeline runs"
        )
    return call if isinstance(call, Current) else Current(call)
