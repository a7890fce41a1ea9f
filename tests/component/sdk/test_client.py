"""The sync client against a scripted router over real gRPC."""

from collections.abc import Iterator

import downstack
import pytest
from downstack.client import Client
from downstack.errors import (
    AbortedError,
    CallCancelledError,
    DeadlineError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)

from tests.component.sdk.scripted import KEY, ScriptedRouter, serving


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ScriptedRouter, str]]:
    with serving() as pair:
        yield pair


@pytest.fixture
def router(served: tuple[ScriptedRouter, str]) -> ScriptedRouter:
    return served[0]


@pytest.fixture
def client(served: tuple[ScriptedRouter, str]) -> Iterator[Client]:
    with Client.connect(served[1], api_key=KEY) as client:
        yield client


def test_the_package_offers_the_client() -> None:
    assert downstack.Client is Client
    with pytest.raises(AttributeError):
        _ = downstack.Nothing


def test_an_answer_streams_and_ends_with_its_facts(client: Client, router: ScriptedRouter) -> None:
    answer = client.generate("Hi", model="good", timeout_s=20)
    assert answer.usage is None
    assert [delta.text for delta in answer] == ["Hel", "lo"]
    assert answer.text == "Hello"
    assert answer.usage is not None
    assert (answer.usage.input_total, answer.cached_tokens, answer.finish_reason) == (3, 1, "stop")
    assert answer.cost is not None
    assert answer.cost.nano_units == 7
    assert answer.decision is not None
    assert answer.decision.reason == "it holds the prompt"
    assert [citation.document_id for citation in answer.citations] == ["d"]


def test_a_call_carries_the_key_and_the_deadline(client: Client, router: ScriptedRouter) -> None:
    list(client.generate("Hi", model="good", timeout_s=20))
    _, metadata, remaining_s = router.seen[-1]
    assert metadata["authorization"] == f"Bearer {KEY}"
    assert 0 < remaining_s < 21


def test_a_whole_answer_has_the_same_facts(client: Client) -> None:
    answer = client.generate_once("Hi", model="good")
    assert (answer.text, answer.request_id, answer.worker_id) == ("Hello", "req_1", "worker-1")
    assert answer.cached_tokens == 1


def test_the_models_are_listed(client: Client) -> None:
    assert [model.name for model in client.models()] == ["good"]


def test_a_refusal_is_typed_and_keeps_its_reason(client: Client) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.generate_once("Hi", model="unknown")
    error = caught.value
    assert (error.code, error.reason, error.request_id) == ("NOT_FOUND", "MODEL_NOT_FOUND", "req_2")
    assert str(error) == "It was refused."
    assert error.retry_after_s is None


def test_a_bad_request_names_its_fields(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.generate_once("Hi", model="bad")
    assert [(v.field, v.description) for v in caught.value.violations] == [("spec.sampling.top_p", "too big")]
    assert "spec.sampling.top_p: too big" in str(caught.value)


def test_a_limit_says_when_to_come_back(client: Client) -> None:
    with pytest.raises(ExhaustedError) as caught:
        client.generate_once("Hi", model="busy")
    assert caught.value.retry_after_s == 1.5


def test_a_deadline_is_kept(client: Client) -> None:
    with pytest.raises(DeadlineError):
        client.generate_once("Hi", model="slow", timeout_s=0.2)


def test_a_stream_that_fails_raises_what_the_service_said(client: Client) -> None:
    answer = client.generate("Hi", model="breaks")
    with pytest.raises(AbortedError) as caught:
        list(answer)
    assert caught.value.reason == "WORKER_LOST_MID_STREAM"
    assert caught.value.request_id == "req_1"


def test_a_stream_that_just_stops_is_an_error(client: Client) -> None:
    with pytest.raises(InternalError, match="without its last frame"):
        list(client.generate("Hi", model="stops"))


def test_leaving_the_loop_cancels_the_call(client: Client, router: ScriptedRouter) -> None:
    router.cancelled.clear()
    for delta in client.generate("Hi", model="endless", timeout_s=20):
        assert delta.text == "x"
        break
    assert router.cancelled.wait(10)


def test_a_cancelled_answer_raises_and_stops_the_worker(client: Client, router: ScriptedRouter) -> None:
    router.cancelled.clear()
    answer = client.generate("Hi", model="endless", timeout_s=20)
    deltas = iter(answer)
    assert next(deltas).text == "x"
    answer.cancel()
    with pytest.raises(CallCancelledError):
        next(deltas)
    assert router.cancelled.wait(10)


def test_nobody_at_the_target_is_said_in_one_sentence() -> None:
    with Client.connect("127.0.0.1:1", api_key=KEY, timeout_s=10) as client, pytest.raises(UnavailableError) as caught:
        client.models()
    assert caught.value.reason == "UNREACHABLE"
    assert "127.0.0.1:1" in str(caught.value)


def test_a_part_without_an_address_says_how_to_give_it(client: Client) -> None:
    with pytest.raises(ValueError, match="retriever"):
        _ = client.documents
