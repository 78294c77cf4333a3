"""A codec that a user registers is used by runs as the built-in ones are."""

from __future__ import annotations

from typing import Any

import pytest

from treadle import EncodeError, pipeline, step
from treadle.storage.codecs import register_codec, registry


class Ticket:
    """Only its own codec may store it: it has no pickle, and its label is no part of its content."""

    def __init__(self, number: int, label: str = "") -> None:
        self.number, self.label = number, label

    def __reduce__(self) -> Any:
        raise TypeError("tickets are not pickled")


class Tickets:
    """Stores a ticket as its number."""

    name = "tickets"
    decoded: list[bytes]

    def __init__(self) -> None:
        self.decoded = []

    def accepts(self, value: object) -> bool:
        return type(value) is Ticket

    def encode(self, value: Any) -> bytes:
        return b"no " + str(value.number).encode()

    def decode(self, data: bytes) -> object:
        self.decoded.append(data)
        return Ticket(int(data[3:]), "decoded")


@pytest.fixture
def tickets(monkeypatch: pytest.MonkeyPatch) -> Tickets:
    monkeypatch.setattr(registry, "_registered", registry._registered)
    codec = Tickets()
    register_codec(codec)
    return codec


@step
async def issue(number: int) -> Any:
    return [Ticket(number, "new"), (Ticket(number + 1),)]


@step
async def issue_one(number: int) -> Any:
    return Ticket(number, "new")


@step
async def number_of(ticket: Ticket) -> int:
    return ticket.number


def test_a_registered_codec_stores_digests_and_restores(home: Any, tickets: Tickets) -> None:
    @pipeline
    async def p() -> Any:
        one = await issue_one(7)
        nested = await issue(1)
        future = issue_one.submit(7)
        await future
        kinds = [await number_of(future), await number_of(Ticket(7, "another label")), await number_of(nested[1][0])]
        return [one.number, nested[0].number, kinds, future.artifact.codec]

    first = home.result(p)
    assert first.value == [7, 1, [7, 7, 2], "tickets"]
    assert first.step_results["number_of_2"].status == "cached"  # equal content is an equal key
    again = home.result(p)
    assert again.value == first.value
    assert {call.status for call in again.step_results.values()} == {"cached"}
    assert set(tickets.decoded) >= {b"no 7", b"no 1", b"no 2"}


def test_without_its_codec_a_stored_value_is_performed_again(
    home: Any, tickets: Tickets, monkeypatch: pytest.MonkeyPatch
) -> None:
    @pipeline
    async def p() -> int:
        return await number_of(issue_one.submit(7))

    home.value(p)
    monkeypatch.setattr(registry, "_registered", ())
    result = home.result(p)
    # Performed again, and then it cannot be stored without the codec either.
    assert result.status == "failed"
    assert isinstance(result.step_results["issue_one"].error, EncodeError)
