"""Resources and rates as users write them: what is read, and what is refused, when the step is decorated."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle import Engine, Resources, step
from treadle.errors import OptionError
from treadle.limits import Rate, quantity


def body(x: int) -> int:
    return x


def refusal(option: str, value: Any) -> str:
    with pytest.raises(OptionError) as caught:
        step(**{option: value})(body)
    assert caught.value.option == option  # type: ignore[attr-defined]
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "cores"),
    [
        ("4", 4.0), (2, 2.0), (0.5, 0.5), ("1.5", 1.5), ("500m", 0.5), ("0", 0.0), (0.1, 0.1), ("1e1", 10.0),
        ("0.0001", 0.001),
    ],
)  # fmt: skip
def test_cores_are_numbers_or_quantities_in_thousandths(written: Any, cores: float) -> None:
    assert Resources(cpu=written).cpu == cores


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("16Gi", 16 * 2**30), ("512Mi", 512 * 2**20), ("1G", 10**9), (1024, 1024), ("128974848", 128974848),
        ("129e6", 129 * 10**6), ("129M", 129 * 10**6), ("1.5Ki", 1536), ("1k", 1000), (1e9, 10**9), ("0.5", 1),
    ],
)  # fmt: skip
def test_memory_is_bytes_or_a_quantity_as_kubernetes_writes_it(written: Any, size: int) -> None:
    assert Resources(memory=written).memory == size


def test_both_shapes_of_gpus_are_read() -> None:
    numbered = Resources.of({"cpu": "4", "memory": "16Gi", "gpu": 1})
    typed = Resources.of({"gpu": "nvidia-tesla-v100", "gpu_count": 2})
    assert numbered == Resources(cpu=4, memory=16 * 2**30, gpu=1)
    assert (numbered.gpu_count, numbered.gpu_type) == (1, "")
    assert typed is not None
    assert (typed.gpu, typed.gpu_count, typed.gpu_type) == ("nvidia-tesla-v100", 2, "nvidia-tesla-v100")
    assert Resources(gpu="a100").gpu_count == 1
    assert Resources(gpu="a100", gpu_count=0).gpu_count == 0
    assert (Resources().gpu, Resources().gpu_count) == (0, 0)
    assert Resources(gpu="1080ti").gpu_type == "1080ti"
    assert Resources(gpu="2") == Resources(gpu_count=2) == Resources(gpu=2, gpu_count=2)


def test_resources_are_frozen_and_can_be_compared_and_hashed() -> None:
    need = Resources(cpu="500m")
    assert need == Resources(cpu=0.5)
    assert len({need, Resources(cpu=0.5)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        need.cpu = 3  # type: ignore[misc]


def test_a_step_takes_a_dict_an_object_or_none() -> None:
    made = step(resources={"cpu": 2})(body)
    assert made.options.resources == Resources(cpu=2)
    assert made.with_options(resources=Resources(gpu=1)).options.resources == Resources(gpu=1)
    assert made.with_options(resources=None).options.resources is None
    assert made.with_options(timeout=3).options.resources == Resources(cpu=2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"cpu": -1}, "resources: cpu=-1 is not allowed. Fix: give cores from 0"),
        ({"cpu": "-500m"}, "cpu='-500m' is not allowed"),
        ({"cpu": float("nan")}, "cpu=nan is not allowed"),
        ({"cpu": float("inf")}, "cpu=inf is not allowed"),
        ({"cpu": "many"}, "cpu='many' is not allowed"),
        ({"cpu": ""}, "cpu='' is not allowed"),
        ({"cpu": True}, "cpu=True is not allowed"),
        ({"cpu": [4]}, "cpu=[4] is not allowed"),
        ({"memory": "16GB"}, "memory='16GB' is not allowed. Fix: give bytes from 0, or a text such as '16Gi'"),
        ({"memory": "512m"}, "'m' is a thousandth, '512M' or '512Mi' are megabytes"),
        ({"memory": "9999Ei"}, "give less"),
        ({"memory": "1e999999999"}, "is not allowed"),
        ({"gpu": -1}, "gpu=-1 is not allowed"),
        ({"gpu": 0.5}, "gpu=0.5 is not allowed. Fix: give a whole number from 0"),
        ({"gpu": True}, "gpu=True is not allowed"),
        ({"gpu": 1, "gpu_count": 2}, "gpu_count=2 is not allowed"),
        ({"gpu": "a100", "gpu_count": -2}, "gpu_count=-2 is not allowed"),
        ({"gpu": "a100", "gpu_count": "some"}, "gpu_count='some' is not allowed"),
        ({"mem": "1Gi"}, "resources has no 'mem'. Fix: did you mean 'memory'?"),
        ({"gpus": 1}, "resources has no 'gpus'. Fix: did you mean 'gpu'?"),
        ({"Cpu": 1}, "resources has no 'Cpu'. Fix: did you mean 'cpu'?"),
        ({"MEMORY": 1}, "resources has no 'MEMORY'. Fix: did you mean 'memory'?"),
        ({"colour": 1}, "the resources are: cpu, memory, gpu, gpu_count"),
        ({4: 1}, "resources has no 4"),
        ("4", "resources='4' is not allowed. Fix: give a dict such as"),
        (4, "resources=4 is not allowed"),
    ],
)
def test_what_is_no_resource_is_refused_at_decoration(value: Any, said: str) -> None:
    assert said in refusal("resources", value)
    with pytest.raises(OptionError):
        step(body).with_options(resources=value)
    with pytest.raises(OptionError):
        Engine("memory://", resources=value)


def test_an_engine_names_the_ways_to_overcommit() -> None:
    with pytest.raises(OptionError, match=r"overcommit='eror' is not allowed. Fix: did you mean 'error'\?"):
        Engine("memory://", overcommit="eror")  # type: ignore[arg-type]


@given(st.integers(0, 10**12), st.integers(0, 999), st.sampled_from(["", "k", "M", "Gi", "m"]))
def test_a_quantity_is_read_exactly(whole: int, thousandths: int, unit: str) -> None:
    factor = {"": Fraction(1), "k": Fraction(1000), "M": Fraction(10**6), "Gi": Fraction(2**30), "m": Fraction(1, 1000)}
    found = quantity(f"{whole}.{thousandths:03}{unit}")
    assert found is not None
    assert Fraction(*found) == (whole + Fraction(thousandths, 1000)) * factor[unit]


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_is_refused(text: str) -> None:
    found = quantity(text)
    assert found is None or (found[0] >= 0 and found[1] > 0)


# -- rates --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "starts", "seconds", "burst"),
    [
        ("100/s", 100, 1, 100), ("5000/min", 250, 3, 83), ("10/h", 1, 360, 1), (" 3 / s ", 3, 1, 3),
        ("0.5/s", 1, 2, 1), ("1/d", 1, 86400, 1), ("2.5/s", 5, 2, 2), ("60/minute", 1, 1, 1), ("1/hour", 1, 3600, 1),
    ],
)  # fmt: skip
def test_a_rate_is_starts_per_time(written: str, starts: int, seconds: int, burst: int) -> None:
    rate = step(rate=written)(body).options.rate
    assert rate == Rate(starts, seconds)
    assert isinstance(rate, Rate)
    assert rate.burst == burst


@pytest.mark.parametrize(
    "value", ["100", 100, 1.5, "-1/s", "1/fortnight", "x/s", "/s", "1/", "inf/s", "nan/s", True, ""]
)
def test_what_is_no_rate_is_refused_at_decoration(value: Any) -> None:
    assert f"rate={value!r} is not allowed. Fix: give starts per time, such as '100/s'" in refusal("rate", value)


def test_a_rate_of_nothing_is_refused_and_none_is_no_bound() -> None:
    assert "give a rate above 0, or None" in refusal("rate", "0/s")
    assert step(rate="5/s")(body).with_options(rate=None).options.rate is None


# -- groups -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "  ", 3, ["a"], True])
def test_an_execution_group_is_a_name(value: Any) -> None:
    assert "is not allowed. Fix: give a name" in refusal("execution_group", value)


def test_an_unknown_option_is_still_told_the_nearest_one() -> None:
    with pytest.raises(OptionError, match="did you mean 'resources'"):
        step(resource={"cpu": 1})  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="did you mean 'execution_group'"):
        step(executiongroup="a")  # type: ignore[call-overload]
