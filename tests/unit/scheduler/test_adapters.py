"""Requests for an adapter go to workers that hold it."""

import pytest

from services.kit.errors import Reason
from services.scheduler.domain.instructions import Place
from services.scheduler.domain.worker import Adapter
from tests.unit.scheduler.making import Desk, offer

LEGAL = Adapter(name="legal", id="legal@1", rank=8)
ASKED = (offer(adapter="legal@1"),)


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.hello("w1")
    desk.hello("w2", adapters=(LEGAL,))
    return desk


def test_a_worker_without_it_is_filtered(desk: Desk) -> None:
    """The grant names the adapter by its id, and the record says why the other worker was left out."""
    for number in range(3):
        placed = desk.place(f"req_{number}", offers=ASKED)
        assert (placed.grant.worker_id, placed.grant.model, placed.grant.adapter) == ("w2", "m", "legal@1")
        assert {each.worker_id: each.filtered_by for each in placed.decision.candidates} == {"w1": "adapter", "w2": ""}
    assert {desk.place(f"base_{number}").grant.adapter for number in range(3)} == {""}


def test_one_that_nobody_holds_is_refused_at_once(desk: Desk) -> None:
    """Also where the name is there with other weights: its id is another one."""
    refused = desk.refusal(offers=(offer(adapter="legal@2"),))
    assert refused.error.reason == Reason.ADAPTER_NOT_FOUND
    assert refused.error.metadata == {"adapter": "legal@2"}


def test_its_only_worker_may_come_back(desk: Desk) -> None:
    """While that worker is lost the request waits; a worker that was introduced with the adapter gets it."""
    desk.gone("w2")
    _, found = desk.ask(offers=ASKED)
    assert not found
    found = desk.hello("w1", adapters=(LEGAL,))
    assert [each.grant.worker_id for each in found if isinstance(each, Place)] == ["w1"]


def test_what_no_holder_can_take_is_refused(desk: Desk) -> None:
    """A prompt longer than their context, whatever the others could take."""
    desk.hello("w2", adapters=(LEGAL,), context_tokens=64)
    refused = desk.refusal(offers=(offer(160, adapter="legal@1"),))
    assert refused.error.reason == Reason.PROMPT_TOO_LONG
