"""What bounds the calls of a step: the resources that each of them needs, and the rate at which they start.

Knows how quantities are written and which are sound; does not know what a machine has, or what time it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast

from treadle._record import record
from treadle.errors import OptionError

Overcommit = Literal["clamp", "error"]

OVERCOMMITS: Final = ("clamp", "error")
RESOURCES: Final = ("cpu", "memory", "gpu", "gpu_count")
MOST: Final = 2**63 - 1

_UNITS: Final = {
    "n": (1, 10**9), "u": (1, 10**6), "m": (1, 1000), "": (1, 1),
    "k": (10**3, 1), "M": (10**6, 1), "G": (10**9, 1), "T": (10**12, 1), "P": (10**15, 1), "E": (10**18, 1),
    "Ki": (2**10, 1), "Mi": (2**20, 1), "Gi": (2**30, 1), "Ti": (2**40, 1), "Pi": (2**50, 1), "Ei": (2**60, 1),
}  # fmt: skip
_NUMBER = r"(\d{1,40})(?:\.(\d{0,40}))?"
_QUANTITY = rf"{_NUMBER}(?:[eE]([+-]?\d{{1,2}})|([numkMGTPE]|[KMGTPE]i)?)"
_RATE = rf"\s*{_NUMBER}\s*/\s*([a-z]+)\s*"
_PERIODS: Final = {
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400,
}  # fmt: skip


def quantity(value: object) -> tuple[int, int] | None:
    """Read a number or a quantity as Kubernetes writes it, exactly, as a fraction; ``None`` if it is none, or negative.

    >>> quantity("1.5"), quantity("500m"), quantity("16Gi"), quantity(2), quantity("-1")
    ((15, 10), (500, 1000), (17179869184, 1), (2, 1), None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    match = re.fullmatch(_QUANTITY, repr(value) if isinstance(value, (int, float)) else value)
    if match is None:
        return None
    above, below = _fraction(match[1], match[2])
    if match[3]:
        exponent = int(match[3])
        return above * 10 ** max(exponent, 0), below * 10 ** max(-exponent, 0)
    factor, divisor = _UNITS[match[4] or ""]
    return above * factor, below * divisor


def _fraction(whole: str, decimals: str | None) -> tuple[int, int]:
    return int(whole + (decimals or "")), 10 ** len(decimals or "")


@record
class Resources:
    """What one call of a step needs while it is performed, or what an engine has to give.

    Args:
        cpu: cores: ``4``, ``"1.5"`` or ``"500m"``; kept as a number, rounded up to thousandths.
        memory: bytes: ``"16Gi"``, ``"512Mi"``, ``"1G"`` or a number; kept as whole bytes.
        gpu: how many, or of which type (``"nvidia-tesla-v100"``).
        gpu_count: how many of that type; 1 if only the type is given.

    Raises:
        OptionError: a quantity is negative, not a number, or not written as one.

    >>> Resources(cpu="500m", memory="16Gi")
    Resources(cpu=0.5, memory=17179869184, gpu=0, gpu_count=0)
    >>> Resources(gpu="nvidia-tesla-v100", gpu_count=2).gpu_type
    'nvidia-tesla-v100'
    """

    cpu: float = 0.0
    memory: int = 0
    gpu: int | str = 0
    gpu_count: int = cast("int", None)

    if TYPE_CHECKING:  # what may be given is more than what is kept

        def __init__(
            self,
            cpu: float | str | None = ...,
            memory: float | str | None = ...,
            gpu: int | str | None = ...,
            gpu_count: int | str | None = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        millis = _amount("cpu", self.cpu, 1000, "cores from 0: 4, 0.5, or a text such as '4', '1.5' or '500m'")
        memory = _amount("memory", self.memory, 1, "bytes from 0, or a text such as '16Gi', '512Mi' or '1G'")
        gpu, count = _gpus(self.gpu, self.gpu_count)
        for name, value in (("cpu", millis / 1000), ("memory", memory), ("gpu", gpu), ("gpu_count", count)):
            object.__setattr__(self, name, value)

    @property
    def gpu_type(self) -> str:
        """The type of GPU that is named; ``""`` if any will do."""
        return self.gpu if isinstance(self.gpu, str) else ""

    @property
    def amounts(self) -> dict[str, int]:
        """What is asked for, in whole units: thousandths of a core, bytes, GPUs."""
        return {"cpu": round(self.cpu * 1000), "memory": self.memory, "gpu": self.gpu_count}

    @classmethod
    def of(cls, value: object) -> Resources | None:
        """Read the ``resources`` option: a dict, or a ``Resources``.

        Raises:
            OptionError: a name is unknown, or a quantity is not allowed.
        """
        if value is None or isinstance(value, Resources):
            return value
        if not isinstance(value, Mapping):
            _refuse("resources", value, "a dict such as {'cpu': '4', 'memory': '16Gi', 'gpu': 1}, or Resources(...)")
        given: dict[Any, Any] = dict(value)
        for name in given:
            if name not in RESOURCES:
                _refuse_name(name)
        return cls(**given)


def _amount(name: str, value: object, unit: int, wanted: str) -> int:
    """Whole units of a quantity, rounded up."""
    if value is None:
        return 0
    exact = quantity(value)
    if exact is None:
        _refuse(name, value, wanted)
    if name == "memory" and isinstance(value, str) and value[-1] in "num":
        _refuse(name, value, f"whole bytes: 'm' is a thousandth, '{value[:-1]}M' or '{value[:-1]}Mi' are megabytes")
    amount = -(-exact[0] * unit // exact[1])
    if amount > MOST:
        _refuse(name, value, f"less: {MOST // unit} is the most")
    return amount


def _gpus(gpu: object, count: object) -> tuple[int | str, int]:
    """The GPUs as they are asked for, by number or by type, and how many of them."""
    exact = quantity(gpu) if gpu is not None else (0, 1)
    number = None if count is None else _whole("gpu_count", count)
    if exact is None:
        if not isinstance(gpu, str) or not gpu[:1].isalnum() or gpu.isdecimal():
            _refuse("gpu", gpu, "a whole number from 0, or a type such as 'nvidia-tesla-v100' and gpu_count=2")
        return gpu, 1 if number is None else number
    plain = _whole("gpu", gpu or 0)
    if plain and number is not None and plain != number:
        _refuse("gpu_count", count, f"one number of GPUs: gpu={gpu!r} says it already")
    total = plain or number or 0
    return total, total


def _whole(name: str, value: object) -> int:
    exact = quantity(value)
    if exact is None or exact[0] % exact[1] or exact[0] // exact[1] > MOST:
        _refuse(name, value, "a whole number from 0")
    return exact[0] // exact[1]


def _refuse(name: str, value: object, wanted: str) -> NoReturn:
    what = f"{name}={value!r}" if name in ("resources", "rate") else f"resources: {name}={value!r}"
    option = "rate" if name == "rate" else "resources"
    raise OptionError(f"{what} is not allowed", fix=f"give {wanted}", option=option, part=name)


def _refuse_name(name: object) -> NoReturn:
    import difflib  # only a mistake pays for it

    near = difflib.get_close_matches(str(name).lower(), RESOURCES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"the resources are: {', '.join(RESOURCES)}"
    raise OptionError(f"resources has no {name!r}", fix=hint, option="resources", part=name)


def show(name: str, amount: float) -> str:
    """An amount of a resource as users write it; a large odd number of bytes is rounded.

    >>> show("cpu", 2.5), show("memory", 16 * 2**30), show("memory", 1500), show("gpu", 2)
    ('cpu 2.5', 'memory 16Gi', 'memory 1500', 'gpu 2')
    >>> show("memory", 25_276_502_016)
    'memory 23.54Gi'
    """
    if name != "memory":
        return f"{name} {amount:g}"
    sizes = {unit: amount / _UNITS[unit][0] for unit in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki")}
    large = [unit for unit, size in sizes.items() if size >= 1]
    for unit in large:
        if sizes[unit] * 100 == int(sizes[unit] * 100) and float(f"{sizes[unit]:g}") == sizes[unit]:
            return f"memory {sizes[unit]:g}{unit}"
    return f"memory {sizes[large[0]]:.2f}{large[0]}" if large and large[0] != "Ki" else f"memory {amount:.0f}"


@record
class Rate:
    """How many calls of a step may start in how many seconds.

    >>> Rate.of("5000/min")
    Rate(starts=250, seconds=3)
    >>> Rate.of("5000/min").burst, Rate.of("10/h").burst
    (83, 1)
    """

    starts: int
    seconds: int

    @property
    def burst(self) -> int:
        """How many may start at once after a pause: what one second allows, and one at least."""
        return max(1, self.starts // self.seconds)

    @classmethod
    def of(cls, value: object) -> Rate | None:
        """Read the ``rate`` option: a number of starts per second, minute, hour or day.

        Raises:
            OptionError: it is not written so, or is 0.
        """
        if value is None or isinstance(value, Rate):
            return value
        match = re.fullmatch(_RATE, value) if isinstance(value, str) else None
        if match is None or match[3] not in _PERIODS:
            _refuse("rate", value, "starts per time, such as '100/s', '5000/min' or '10/h'")
        above, below = _fraction(match[1], match[2])
        if not above:
            _refuse("rate", value, "a rate above 0, or None for no bound")
        below *= _PERIODS[match[3]]
        common = math.gcd(above, below)
        return cls(above // common, below // common)
