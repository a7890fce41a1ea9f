"""Which models can answer."""

import pytest

from services.kit.errors import DownstackError, Reason
from services.router.domain.context import output_limit
from services.router.domain.models import resolve, served_models, usable
from services.router.domain.outcome import Price
from tests.unit.router.factories import worker

PRICE = Price(version="1", currency="EUR", input_nano=1, cached_nano=1, output_nano=1)


def test_a_model_is_what_its_live_workers_say() -> None:
    """Ready workers count, the shortest context holds, lost workers are gone."""
    workers = [
        worker("a", ready=False),
        worker("b", context_tokens=80),
        worker("c", context_tokens=90),
        worker("d", live=False, context_tokens=10),
        worker("e", model="other", live=False),
    ]
    served = served_models(workers, {"m": PRICE})
    assert list(served) == ["m"]
    assert (served["m"].ready_workers, served["m"].context_tokens, served["m"].price) == (2, 80, PRICE)


def test_where_workers_disagree_the_ready_ones_win() -> None:
    """A rolling change of the tokenizer is described by those that can answer."""
    served = served_models([worker("a", tokenizer_revision="old", ready=False, context_tokens=5), worker("b")], {})
    assert (served["m"].tokenizer_revision, served["m"].context_tokens) == ("r1", 100)
    assert served["m"].price is None


@pytest.mark.parametrize(
    ("name", "revisions", "reason"),
    [
        ("unknown", {"m": "r1"}, Reason.MODEL_NOT_FOUND),
        ("m", {}, Reason.MODEL_NOT_FOUND),
        ("m", {"m": "r2"}, Reason.MODEL_NOT_FOUND),
        ("idle", {"idle": "r1"}, Reason.NO_HEALTHY_WORKER),
    ],
)
def test_models_that_cannot_answer(name: str, revisions: dict[str, str], reason: Reason) -> None:
    """Unknown here, unknown to this router, of another tokenizer, without workers."""
    with pytest.raises(DownstackError) as raised:
        resolve(name, served=served_models([worker()], {}), revisions=revisions)
    assert raised.value.reason == reason
    assert raised.value.metadata == {"model": name}
    assert (raised.value.retry_after_s is not None) == (reason == Reason.NO_HEALTHY_WORKER)


def test_a_model_that_can_answer() -> None:
    """Same tokenizer on both sides."""
    served = served_models([worker(), worker(model="b")], {})
    assert resolve("m", served=served, revisions={"m": "r1"}).name == "m"
    assert [model.name for model in usable(served, {"m": "r1", "b": "r1"})] == ["b", "m"]
    assert [model.name for model in usable(served, {"m": "r2", "b": "r1"})] == ["b"]


def test_an_adapter_is_named_after_its_model() -> None:
    """Only the workers that hold it count; its price, tokenizer and context are those of the model there."""
    workers = [worker("a"), worker("b", context_tokens=80, adapters={"legal": "legal@1"})]
    served = served_models(workers, {"m": PRICE})
    found = resolve("m:legal", served=served, revisions={"m": "r1"})
    assert (found.name, found.model, found.adapter) == ("m:legal", "m", "legal@1")
    assert (found.ready_workers, found.context_tokens, found.price) == (1, 80, PRICE)
    assert (served["m"].ready_workers, served["m"].adapter) == (2, "")
    assert [model.name for model in usable(served, {"m": "r1"})] == ["m", "m:legal"]


def test_an_adapter_that_changes_goes_with_the_majority() -> None:
    """While some workers hold other weights by the name, one id is asked for, not a mixture."""
    workers = [worker(f"w{number}", adapters={"legal": f"legal@{number // 2}"}) for number in range(3)]
    assert served_models(workers, {})["m:legal"].adapter == "legal@0"
    workers.append(worker("w3", adapters={"legal": "legal@1"}))
    assert served_models(workers, {})["m:legal"].adapter == "legal@1"


@pytest.mark.parametrize("name", ["m:art", "m:legal:", "m:"])
def test_an_adapter_that_no_worker_holds(name: str) -> None:
    """The refusal names those that there are."""
    served = served_models([worker(adapters={"legal": "legal@1"})], {})
    with pytest.raises(DownstackError) as raised:
        resolve(name, served=served, revisions={"m": "r1"})
    expected = Reason.ADAPTER_NOT_FOUND if name == "m:art" else Reason.MODEL_NOT_FOUND
    assert raised.value.reason == expected
    assert "m:legal" in raised.value.message
    with pytest.raises(DownstackError) as raised:
        resolve("m:legal", served={}, revisions={"m": "r1"})
    assert raised.value.reason == Reason.NO_HEALTHY_WORKER


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "limit"), [(10, None, 90), (10, 5, 5), (10, 500, 90), (99, None, 1), (99, 7, 1)]
)
def test_the_answer_gets_what_is_left(prompt_tokens: int, max_tokens: int | None, limit: int) -> None:
    """The caller's bound holds, and the context's does too."""
    assert output_limit(prompt_tokens, context_tokens=100, max_tokens=max_tokens, model="m") == limit


@pytest.mark.parametrize("prompt_tokens", [100, 101])
def test_a_prompt_that_leaves_no_room(prompt_tokens: int) -> None:
    """The refusal names both numbers."""
    with pytest.raises(DownstackError) as raised:
        output_limit(prompt_tokens, context_tokens=100, max_tokens=None, model="m")
    assert raised.value.reason == Reason.PROMPT_TOO_LONG
    assert raised.value.metadata == {"prompt_tokens": str(prompt_tokens), "context_tokens": "100"}
