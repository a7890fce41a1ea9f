"""The asyncio client against a scripted router over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from downstack.aio import Client
from downstack.errors import AbortedError, DeadlineError, InternalError, NotFoundError, UnavailableError

from tests.component.sdk.scripted import KEY, ScriptedRouter, serving


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ScriptedRouter, str]]:
    with serving() as pair:
        yield pair


@pytest.fixture
async def client(served: tuple[ScriptedRouter, str]) -> AsyncIterator[Client]:
    async with Client.connect(served[1], api_key=KEY) as client:
        yield client


async def test_an_answer_streams_and_ends_with_its_facts(client: Client) -> None:
    answer = client.generate("Hi", model="good")
    assert [delta.text async for delta in answer] == ["Hel", "lo"]
    assert (answer.text, answer.cached_tokens, answer.finish_reason) == ("Hello", 1, "stop")
    assert answer.cost is not None
    assert answer.cost.nano_units == 7


async def test_a_whole_answer_and_the_models(client: Client) -> None:
    answer = await client.generate_once("Hi", model="good")
    assert (answer.text, answer.request_id) == ("Hello", "req_1")
    assert [model.name for model in await client.models()] == ["good"]


async def test_errors_are_typed(client: Client) -> None:
    with pytest.raises(NotFoundError) as caught:
        await client.generate_once("Hi", model="unknown")
    assert (caught.value.reason, caught.value.request_id) == ("MODEL_NOT_FOUND", "req_2")
    with pytest.raises(DeadlineError):
        await client.generate_once("Hi", model="slow", timeout_s=0.2)


async def test_a_broken_stream_raises(client: Client) -> None:
    with pytest.raises(AbortedError) as caught:
        [delta async for delta in client.generate("Hi", model="breaks")]
    assert caught.value.request_id == "req_1"
    with pytest.raises(InternalError):
        [delta async for delta in client.generate("Hi", model="stops")]


async def test_leaving_the_loop_cancels_the_stream(client: Client, served: tuple[ScriptedRouter, str]) -> None:
    served[0].cancelled.clear()
    async for delta in client.generate("Hi", model="endless", timeout_s=20):
        assert delta.text == "x"
        break
    assert await asyncio.to_thread(served[0].cancelled.wait, 10)


async def test_nobody_at_the_target() -> None:
    async with Client.connect("127.0.0.1:1", api_key=KEY, timeout_s=10) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.models()
    assert caught.value.reason == "UNREACHABLE"
