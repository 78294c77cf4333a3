"""What a person sees on a terminal while ``p.run()`` works: read from the log by a thread, and no work for the loop.

* Shown only if standard error is a terminal and `rich` is installed; never under ``CI``, in a debug run, or with
  ``TREADLE_PROGRESS=0``. Everything else learns of a run from the ``treadle`` logger.
* A run that is over in half a second shows nothing, and does not pay for importing `rich`.
* The thread reads ten times a second, and less often if reading takes long: it never takes more than a tenth of the
  interpreter's time. What it shows is gone when the run is over.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from treadle import events as ev
from treadle._runtime.plan import logger
from treadle._runtime.views.widths import cut_middle, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from treadle._runtime.handle import RunHandle

DELAY_S = 0.5
EVERY_S = 0.1
LAST_WORDS_S = 1.0
NAME_COLUMNS = 40
MOST_STEPS = 12
"""So many steps have a line of their own: those that are under way, and the last ones."""


def shown(handle: RunHandle[Any], *, debug: bool) -> AbstractContextManager[object]:
    """Show how a run goes on while the context is open, if somebody can see it."""
    return Watch(handle) if not debug and is_wanted() else nullcontext()


def is_wanted() -> bool:
    """Whether there is a terminal, and nobody has said that nothing is to be shown."""
    choice = os.environ.get("TREADLE_PROGRESS", "").lower()
    if choice in ("0", "false", "no", "off") or (os.environ.get("CI") and choice != "1"):
        return False
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it was closed
        return False


class Count:
    """How far the calls of one step are; calls that a resume takes over count as done."""

    __slots__ = ("cached", "ended", "failed", "running", "scheduled", "within")

    def __init__(self) -> None:
        self.scheduled = self.running = self.ended = self.cached = self.failed = 0
        self.within = ""

    @property
    def total(self) -> int:
        """So many calls are known of."""
        return max(self.scheduled, self.ended + self.running)

    @property
    def note(self) -> str:
        """What is to be said beside the number."""
        numbers = (("running", self.running), ("cached", self.cached), ("failed", self.failed))
        words = [f"{number} {word}" for word, number in numbers if number]
        return ", ".join([*words, *([self.within] if self.within and self.running else [])])


class Tally:
    """A run's events, counted by step: it keeps nothing per call."""

    def __init__(self) -> None:
        self.steps: dict[str, Count] = {}
        self.seq = 0

    def take(self, event: ev.Event) -> None:
        """Count one event.

        >>> tally = Tally()
        >>> tally.take(ev.CallScheduled(at=0, call="f", step="f", seq=1))
        >>> tally.take(ev.CallCached(at=0, call="f", step="f", seq=2))
        >>> tally.steps["f"].total, tally.steps["f"].note
        (1, '1 cached')
        """
        self.seq = event.seq
        if isinstance(event, ev.RunResumed):
            self.steps.clear()
        if not event.call:
            return
        count = self.steps.get(event.step)
        if count is None:
            count = self.steps[event.step] = Count()
        match event:
            case ev.CallScheduled():
                count.scheduled += 1
            case ev.CallStarted():
                count.running += 1
            case ev.CallRetrying():
                count.running -= 1
            case ev.CallReused():
                count.ended += 1
            case ev.Progressed():
                count.within = f"{event.done:g}/{event.total:g}" if event.total else f"{event.done:g}"
            case _ if isinstance(event, ev.CallEnded):
                count.ended += 1
                count.running = max(0, count.running - (1 if event.attempt else 0))
                count.cached += isinstance(event, ev.CallCached)
                count.failed += isinstance(event, ev.CallFailed)
            case _:
                pass


class Watch:
    """Reads the log of one run and shows how it goes on, until it is left."""

    def __init__(self, handle: RunHandle[Any]) -> None:
        self._handle, self._tally = handle, Tally()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name="treadle-progress", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join(LAST_WORDS_S)  # a terminal that was stopped with Ctrl-S must not hold the program

    def _work(self) -> None:
        try:
            if self._left.wait(DELAY_S):
                return
            display = Display.on_terminal(self._handle._target.name)
            if display is None:
                return
            with display:
                while not self._left.wait(self._look(display)):
                    pass
        except Exception as error:  # the terminal is gone, say: no reason for the run to end
            logger.warning("the progress of run %s is not shown any more: %r", self._handle.id, error)

    def _look(self, display: Display) -> float:
        """Read what is new, show it, and say how long to rest."""
        begun = time.perf_counter()
        run = self._handle._run
        if run is not None:
            for event in run.engine.archive.events(run.id, self._tally.seq):
                self._tally.take(event)
        display.show(self._tally)
        return max(EVERY_S, 9 * (time.perf_counter() - begun))


class Display:
    """A bar for the run and a line for each of its steps."""

    def __init__(self, name: str, bars: Progress) -> None:
        self._bars = bars
        self._run = bars.add_task(_fitted(name), total=None, note="")
        self._steps: dict[str, TaskID] = {}

    @classmethod
    def on_terminal(cls, name: str) -> Display | None:
        """On standard error; ``None`` if `rich` is not installed."""
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError:
            return None
        texts = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]")]
        columns = (texts[0], BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), texts[1])
        bars = Progress(
            *columns, console=Console(stderr=True), auto_refresh=False, transient=True,
            # What steps print goes above the bars; into a file or pipe it goes as it is.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(), redirect_stderr=True,
        )  # fmt: skip
        return cls(name, bars)

    def show(self, tally: Tally) -> None:
        """Draw the numbers."""
        counts = tally.steps
        ended, total = sum(c.ended for c in counts.values()), sum(c.total for c in counts.values())
        failed = sum(c.failed for c in counts.values())
        self._bars.update(self._run, completed=ended, total=total or None, note=f"{failed} failed" if failed else "")
        under_way = [name for name, count in counts.items() if count.ended < count.total]
        lines = {*under_way[:MOST_STEPS], *list(counts)[-max(1, MOST_STEPS - len(under_way)) :]}
        for name in [name for name in counts if name in lines and name not in self._steps]:
            self._steps[name] = self._bars.add_task(f"  {_fitted(name)}", total=None, note="")
        for name, task in self._steps.items():
            count = counts.get(name) or Count()
            self._bars.update(
                task, completed=count.ended, total=count.total, note=count.note, visible=name in lines
            )  # fmt: skip
        self._bars.refresh()

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()


def _fitted(name: str) -> str:
    return cut_middle(printable(name), NAME_COLUMNS)
