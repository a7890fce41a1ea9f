"""VLLM's KV events over a real socket: gaps, replays that were cut off, numbers that begin anew."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from services.kit.blocks import chain_hashes, root_hash
from services.worker.domain.mirror import Mirror
from tests.support.smollm2 import smollm2_folder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
BLOCK = 4


class Publisher:
    """Speaks as vLLM's publisher does; `kept` is what it can replay."""

    def __init__(self, folder: Path) -> None:
        import zmq.asyncio  # noqa: PLC0415

        self.endpoint, self.replay_endpoint = f"ipc://{folder}/events", f"ipc://{folder}/replay"
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.PUB)
        self.socket.bind(self.endpoint)
        self.replays = self.context.socket(zmq.ROUTER)
        self.replays.bind(self.replay_endpoint)
        self.kept: dict[int, bytes] = {}

    async def send(self, sequence: int, events: Sequence[object]) -> None:
        payload = self.keep(sequence, events)
        await self.socket.send_multipart([b"", sequence.to_bytes(8, "big"), payload])

    def keep(self, sequence: int, events: Sequence[object]) -> bytes:
        import msgspec  # noqa: PLC0415
        from vllm.distributed.kv_events import KVEventBatch  # noqa: PLC0415

        self.kept[sequence] = msgspec.msgpack.encode(KVEventBatch(ts=0.0, events=list(events)))
        return self.kept[sequence]

    async def answer_replays(self) -> None:
        while True:
            client, _, start = await self.replays.recv_multipart()
            for sequence, payload in sorted(self.kept.items()):
                if sequence >= int.from_bytes(start, "big"):
                    await self.replays.send_multipart([client, b"", sequence.to_bytes(8, "big"), payload])
            await self.replays.send_multipart([client, b"", (-1).to_bytes(8, "big", signed=True), b""])


def stored(theirs: int, tokens: list[int], parent: int | None = None) -> object:
    from vllm.distributed.kv_events import BlockStored  # noqa: PLC0415

    return BlockStored(
        block_hashes=[theirs],
        parent_block_hash=parent,
        token_ids=tokens,
        block_size=BLOCK,
        lora_id=None,
        medium=None,
        lora_name=None,
    )


def ours(*blocks: list[int]) -> set[int]:
    root = root_hash(model="m", tokenizer_revision="r")
    return set(chain_hashes(root, [token for block in blocks for token in block], BLOCK))


A, B, C = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]


@pytest.fixture
async def publisher(tmp_path: Path) -> AsyncIterator[Publisher]:
    smollm2_folder()  # skips where there is no vLLM
    found = Publisher(tmp_path)
    answering = asyncio.create_task(found.answer_replays())
    yield found
    answering.cancel()
    found.context.destroy(linger=0)


async def mirror_after(publisher: Publisher, *sends: tuple[int, Sequence[object]]) -> Mirror:
    """The mirror once the last of these has been taken in."""
    from services.worker.adapters.vllm.events import BlockTranslator  # noqa: PLC0415
    from services.worker.adapters.vllm.subscription import Subscription  # noqa: PLC0415

    subscription = Subscription(endpoint=publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
    translator = BlockTranslator(model="m", tokenizer_revision="r", block_size=BLOCK)
    mirror, fence = Mirror(), [99] * BLOCK

    async def speak() -> None:
        # A subscriber that has just connected misses what is said before it is heard of: say it until it answers.
        while not joined.is_set():
            await publisher.socket.send_multipart([b"", (0).to_bytes(8, "big"), publisher.keep(0, [])])
            await asyncio.sleep(0.01)
        for sequence, events in sends:
            await publisher.send(sequence, events)
        await publisher.send(sends[-1][0] + 1, [stored(1000, fence)])

    joined = asyncio.Event()
    speaking = asyncio.create_task(speak())
    async with asyncio.timeout(30):
        async for events in subscription.batches():
            joined.set()
            mirror.apply(translator.forget() if events is None else translator.translate(events))
            if ours(fence) <= resident(mirror):
                break
    await speaking
    subscription.close()
    return mirror


def resident(mirror: Mirror) -> set[int]:
    return {block for part in mirror.snapshot(100) for block in part.hashes}


async def test_a_gap_is_filled_by_replay(publisher: Publisher) -> None:
    """Nothing is missing, and nothing is counted twice."""
    publisher.keep(1, [stored(11, A)])
    mirror = await mirror_after(publisher, (2, [stored(12, B, parent=11)]), (3, [stored(13, C, parent=12)]))
    assert ours(A, B, C) <= resident(mirror)
    assert len(mirror) == 4


async def test_a_replay_that_was_cut_off_begins_from_nothing(publisher: Publisher) -> None:
    """What the missed events said is unknown, so the mirror claims only what came after them."""
    mirror = await mirror_after(publisher, (1, [stored(11, A)]), (5, [stored(13, C)]))
    assert not ours(A) & resident(mirror)
    assert ours(C) <= resident(mirror)
    assert len(mirror) == 2


async def test_a_publisher_that_begins_anew_is_followed_from_nothing(publisher: Publisher) -> None:
    """Its cache is another one."""
    mirror = await mirror_after(publisher, (1, [stored(11, A)]), (2, [stored(12, B)]), (0, [stored(13, C)]))
    assert not (ours(A) | ours(B)) & resident(mirror)
    assert ours(C) <= resident(mirror)
    assert len(mirror) == 2


async def test_blocks_whose_parent_is_unknown_are_left_out(publisher: Publisher) -> None:
    """A name cannot be guessed."""
    mirror = await mirror_after(publisher, (1, [stored(12, B, parent=77), stored(13, C)]))
    assert ours(C) <= resident(mirror)
    assert len(mirror) == 2
