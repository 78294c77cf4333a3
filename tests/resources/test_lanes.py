"""The pure part of admission: nothing is overdrawn, nothing waits for ever, nothing in other lanes is in the way."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from treadle._core.admission import Claim, Lanes, Limit
from treadle._core.rate import Pace
from treadle.limits import Rate


def test_what_is_large_is_not_starved_by_what_is_small() -> None:
    """Small ones come without end; the large one starts as soon as those that ran before it have ended."""
    lanes: Lanes[str] = Lanes()
    cpu = Limit(4)
    small, large = (Claim([(cpu, 1)]),), (Claim([(cpu, 4)]),)
    for _ in range(100):
        lanes.push("small", small)
    assert [lanes.pop() for _ in range(4)] == ["small"] * 4
    lanes.push("large", large)
    running, passed = 4, 0
    while (started := lanes.pop()) != "large":
        if started == "small":
            running, passed = running + 1, passed + 1
        else:
            running -= 1
            lanes.release(small)
            lanes.push("small", small)
    assert running == 0
    assert passed <= 1, "whose turn had come before"
    assert lanes.pop() is None
    lanes.release(large)
    assert [lanes.pop() for _ in range(5)] == [*["small"] * 4, None]


def test_what_needs_another_resource_passes_by() -> None:
    lanes: Lanes[str] = Lanes()
    cpu, gpu = Limit(4), Limit(1)
    both = (Claim([(gpu, 1), (cpu, 1)]),)
    lanes.push("first", both)
    assert lanes.pop() == "first"
    lanes.push("second", both)
    for _ in range(4):
        lanes.push("small", (Claim([(cpu, 1)]),))
    # one core is set aside for the second one, as it can use it when the GPU is free
    assert [lanes.pop() for _ in range(4)] == ["small", "small", None, None]
    lanes.release(both)
    assert lanes.pop() == "second"


def test_who_waits_for_a_plain_limit_sets_nothing_aside() -> None:
    lanes: Lanes[str] = Lanes()
    cpu, one = Limit(4), Limit(1)
    narrow = (one, Claim([(cpu, 3)]))
    lanes.push("a", narrow)
    assert lanes.pop() == "a"
    lanes.push("b", narrow)
    lanes.push("small", (Claim([(cpu, 1)]),))
    assert lanes.pop() == "small"


def test_who_is_owed_and_leaves_the_line_sets_nothing_aside_any_more() -> None:
    lanes: Lanes[str] = Lanes()
    cpu = Limit(2)
    small = (Claim([(cpu, 1)]),)
    lanes.push("small", small)
    lanes.pop()
    lanes.push("large", (Claim([(cpu, 2)]),))
    assert lanes.pop() is None
    lanes.push("small 2", small)
    assert lanes.pop() is None
    lanes.remove("large")
    assert lanes.pop() == "small 2"
    assert len(lanes) == 0


def test_what_is_owed_is_set_aside_at_once() -> None:
    lanes: Lanes[str] = Lanes()
    cpu = Limit(2)
    small = (Claim([(cpu, 1)]),)
    assert lanes.take(small)
    lanes.push("large", (Claim([(cpu, 2)]),))
    lanes.push("small", small)
    assert lanes.pop() is None, "whose turn came first is owed both cores"
    assert not lanes.take(small)
    lanes.release(small)
    assert lanes.pop() == "large"


def test_runs_take_turns_at_a_resource() -> None:
    lanes: Lanes[str] = Lanes()
    cpu = Limit(1)
    claim = (Claim([(cpu, 1)]),)
    for i in range(3):
        lanes.push(f"a{i}", claim, "run a")
    lanes.push("b0", claim, "run b")
    order = []
    while len(lanes):
        order.append(lanes.pop())
        lanes.release(claim)
    assert order.index("b0") <= 2


def test_nothing_else_is_held_by_who_waits_for_a_pace() -> None:
    lanes: Lanes[str] = Lanes()
    pace, limit = Pace(Rate(1, 1)), Limit(1)
    paced = (limit, pace)
    lanes.push("a", paced)
    lanes.push("b", paced)
    assert lanes.pop(5.0) == "a"
    lanes.release(paced)
    assert (lanes.pop(5.9), limit.used, lanes.opens_at) == (None, 0, 6.0)
    lanes.push("plain", (limit,))
    assert lanes.pop(5.9) == "plain"
    assert lanes.pop(6.0) is None, "the limit has no room now, so no start is used up"
    lanes.release((limit,))
    assert lanes.pop(6.0) == "b"
    assert not lanes.is_paced or lanes.pop(9.0) is None
    assert not lanes.is_paced


def test_many_starts_at_an_odd_rate_lose_nothing_to_rounding() -> None:
    pace = Pace(Rate(3, 1))
    for _ in range(3):
        pace.take(0.0)
    now = 0.0
    for _ in range(30_000):
        now = pace.opens_at
        assert pace.is_open(now)
        pace.take(now)
    assert abs(now - 10_000) < 1e-9


Need = tuple[int, int, int, int]
needs = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2), st.integers(0, 3))


@given(st.lists(needs, max_size=30), st.randoms(use_true_random=False))
def test_whatever_is_asked_for_nothing_is_overdrawn_and_all_of_it_starts(asked: list[Need], chance: object) -> None:
    """Whoever runs ends at some time, in any order: then everything starts, and nobody is passed without bound."""
    cpu, memory, plain = Limit(4), Limit(4), Limit(3)
    lanes: Lanes[int] = Lanes()
    kinds: dict[Need, tuple[Limit | Claim, ...]] = {}
    for number, need in enumerate(asked):
        parts: list[Limit | Claim] = [plain] if need[2] else []
        parts.append(Claim([(cpu, need[0]), (memory, need[1])]))
        lanes.push(number, kinds.setdefault(need, tuple(parts)), need[3])
    running: deque[int] = deque()
    started: list[int] = []
    while len(started) < len(asked):
        while (number := lanes.pop()) is not None:
            running.append(number)
            started.append(number)
            assert cpu.used <= 4
            assert memory.used <= 4
            assert plain.used <= 3
        assert running or len(started) == len(asked), "nobody runs and somebody waits"
        if running:
            running.rotate(chance.randint(0, len(running)))  # type: ignore[attr-defined]
            lanes.release(kinds[asked[running.popleft()]])
    for number in running:
        lanes.release(kinds[asked[number]])
    assert sorted(started) == list(range(len(asked)))
    assert (cpu.used, memory.used, plain.used) == (0, 0, 0)
