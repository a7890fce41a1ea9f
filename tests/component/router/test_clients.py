"""The router's clients by themselves, and its metrics."""

import asyncio

from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.scheduler.v1 import scheduler_pb2 as scheduler_pb
from downstack.types.v1 import stream_pb2 as stream_pb
from prometheus_client import REGISTRY

from services.kit.channel import ChannelPool
from services.kit.clock import SystemClock
from services.kit.tickets import sign_ticket
from services.router.adapters.fakes.worker import FakeWorker
from services.router.adapters.once import OnceCollector
from services.router.adapters.worker_client import WorkerClient
from services.router.domain.request import Sampling
from tests.component.router.world import KEYS, MODEL, SECRET, World, served, spec


async def test_a_stream_that_nobody_reads_on_is_cancelled() -> None:
    """Leaving the block tells the worker, also where no task was cancelled."""
    worker = FakeWorker(SECRET.encode(), gate=asyncio.Event())
    async with served(worker.parts()) as endpoint, ChannelPool() as channels:
        client = WorkerClient(channels, secret=SECRET.encode(), clock=SystemClock())
        call = client.generate(
            KEYS["key"],
            endpoint=endpoint,
            ticket=sign_ticket(scheduler_pb.LeaseGrant(lease_id="l"), secret=SECRET.encode()),
            prompt_token_ids=[1, 2],
            sampling=Sampling(),
            timeout_s=30,
        )
        async with call as frames:
            await anext(frames)
            await worker.reached_gate.wait()
        await asyncio.wait_for(worker.cancelled.wait(), 10)
        assert list(worker.requests[0].prompt_token_ids) == [1, 2]


def test_several_answers_come_out_in_order() -> None:
    """Interleaved deltas of n answers are put together by index; one that said nothing is there, too."""
    collector = OnceCollector()
    for index, text in [(2, "c"), (0, "a"), (2, "C")]:
        delta = stream_pb.Delta(index=index, text=text, token_ids=[index])
        collector.add(inference_pb.GenerateResponse(delta=delta))
    choices = collector.response().choices
    assert [choice.text for choice in choices] == ["a", "", "cC"]
    assert [list(choice.token_ids) for choice in choices] == [[0], [], [2, 2]]


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"downstack_router_{name}", labels) or 0.0


async def test_what_is_measured_of_a_request(world: World) -> None:
    """Requests by their end, the first token, tokens by class, and nothing in flight afterwards."""
    ended = {"method": "Generate", "model": MODEL, "code": "OK", "reason": ""}
    before = [sample("requests_total", **ended), sample("ttft_seconds_count", model=MODEL)]
    tokens = sample("tokens_total", model=MODEL, **{"class": "output"})
    await world.frames(spec())
    assert [sample("requests_total", **ended), sample("ttft_seconds_count", model=MODEL)] == [n + 1 for n in before]
    assert sample("tokens_total", model=MODEL, **{"class": "output"}) == tokens + 3
    assert sample("streams_in_flight") == 0
