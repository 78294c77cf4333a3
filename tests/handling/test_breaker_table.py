"""The circuit breaker's table and counting, without any clock, loop or thread."""

from __future__ import annotations

import itertools
import random

import pytest

from treadle._core.breaker import BREAKERS, Breaker, BreakerState, BreakerTrigger, breaker_after
from treadle._core.machine import IllegalTransition


def opened(threshold: int = 2, recovery_s: float = 10.0, at: float = 0.0) -> Breaker:
    breaker = Breaker(threshold, recovery_s)
    for _ in range(threshold):
        breaker.failed(breaker.admit(at).ticket, at)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_a_trigger_that_a_state_does_not_know_is_illegal_and_changes_nothing() -> None:
    for state, trigger in itertools.product(BreakerState, BreakerTrigger):
        if (state, trigger) in BREAKERS:
            assert isinstance(breaker_after(state, trigger), BreakerState)
        else:
            with pytest.raises(IllegalTransition, match=f"{trigger.name} in state {state.name}"):
                breaker_after(state, trigger)


def test_every_state_is_reached_and_left() -> None:
    assert {after for (before, _), after in BREAKERS.items() if after is not before} == set(BreakerState)
    assert {before for (before, _), after in BREAKERS.items() if after is not before} == set(BreakerState)


def test_failures_count_only_if_they_follow_each_other() -> None:
    breaker = Breaker(threshold=3, recovery_s=10.0)
    for outcome in "ffsffsff":
        ticket = breaker.admit(0.0).ticket
        assert not (breaker.failed(ticket, 0.0) if outcome == "f" else breaker.succeeded(ticket))
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 2)
    assert breaker.failed(breaker.admit(0.0).ticket, 0.0)
    assert breaker.state is BreakerState.OPEN


def test_an_attempt_without_a_verdict_is_neither_a_failure_nor_a_success() -> None:
    breaker = Breaker(threshold=2, recovery_s=10.0)
    breaker.failed(breaker.admit(0.0).ticket, 0.0)
    breaker.given_back(breaker.admit(0.0).ticket)
    assert breaker.failures == 1
    assert breaker.failed(breaker.admit(0.0).ticket, 0.0)


def test_while_it_is_open_it_says_how_long_it_stays_so() -> None:
    breaker = opened(recovery_s=10.0, at=5.0)
    assert [breaker.admit(now).retry_after_s for now in (5.0, 9.0, 14.5)] == [10.0, 6.0, 0.5]
    assert breaker.admit(15.0).is_probe


def test_one_probe_is_let_through_and_all_others_are_refused() -> None:
    breaker = opened()
    answers = [breaker.admit(10.0) for _ in range(1000)]
    assert answers[0].is_probe
    assert [answer.ticket for answer in answers[1:]] == [0] * 999


def test_a_probe_that_fails_opens_it_for_the_whole_time_again() -> None:
    breaker = opened(threshold=5)
    assert breaker.failed(breaker.admit(10.0).ticket, 12.0)
    assert (breaker.state, breaker.failures) == (BreakerState.OPEN, 1)
    assert breaker.admit(21.9).ticket == 0
    assert breaker.admit(22.0).is_probe


def test_a_probe_that_succeeds_closes_it_with_a_new_count() -> None:
    breaker = opened(threshold=2)
    assert breaker.succeeded(breaker.admit(10.0).ticket)
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 0)
    assert not breaker.failed(breaker.admit(10.0).ticket, 10.0)


def test_a_probe_without_a_verdict_gives_its_place_to_the_next_at_once() -> None:
    breaker = opened()
    breaker.given_back(breaker.admit(10.0).ticket)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.admit(10.0).is_probe
    assert breaker.admit(10.0).ticket == 0


def test_attempts_from_before_the_state_changed_have_no_say() -> None:
    breaker = Breaker(threshold=2, recovery_s=10.0)
    early = [breaker.admit(0.0).ticket for _ in range(10)]
    assert [breaker.failed(ticket, 1.0) for ticket in early[:4]] == [False, True, False, False]
    assert not breaker.succeeded(early[4])
    assert breaker.state is BreakerState.OPEN
    probe = breaker.admit(11.0)
    breaker.failed(early[5], 11.0)
    breaker.succeeded(early[6])
    breaker.given_back(early[7])
    assert breaker.state is BreakerState.PROBING
    assert breaker.succeeded(probe.ticket)
    assert not breaker.failed(early[8], 11.0)
    assert breaker.failures == 0


def test_a_clock_that_began_later_keeps_it_open_for_no_more_than_its_time() -> None:
    breaker = opened(recovery_s=10.0, at=500.0)
    assert breaker.admit(3.0).retry_after_s == 10.0
    assert breaker.admit(13.0).is_probe


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_its_invariants_hold(seed: int) -> None:
    chance, now = random.Random(seed), 0.0
    breaker = Breaker(threshold=3, recovery_s=5.0)
    under_way: list[int] = []
    for _ in range(500):
        now += chance.random()
        if chance.random() < 0.5 or not under_way:
            answer = breaker.admit(now)
            if answer.ticket:
                under_way.append(answer.ticket)
                assert breaker.state in (BreakerState.CLOSED, BreakerState.PROBING)
            else:
                assert breaker.state in (BreakerState.OPEN, BreakerState.PROBING)
                assert 0.0 <= answer.retry_after_s <= 5.0
        else:
            ticket = under_way.pop(chance.randrange(len(under_way)))
            end = chance.choice("sfg")
            if end == "s":
                breaker.succeeded(ticket)
            elif end == "f":
                breaker.failed(ticket, now)
            else:
                breaker.given_back(ticket)
        assert breaker.state is not BreakerState.CLOSED or breaker.failures < 3
