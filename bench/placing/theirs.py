"""Measures Dynamo's `RadixTree` or `SelectionService` on the same data. A script: its interpreter knows only Dynamo.

Memory is the growth of the process while the blocks are told; the service's listeners are there before.
"""

import asyncio
import gc
import json
import struct
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_HELD = 4
_SETTLE_S = 120.0

Data = Mapping[str, np.ndarray]


def main(part: str, path: str) -> None:
    data = np.load(path)
    found = measure_tree(data) if part == "radix_tree" else asyncio.run(measure_service(data))
    from importlib.metadata import version  # noqa: PLC0415

    print(json.dumps({**found, "version": version("ai-dynamo-runtime")}))


def told(data: Data) -> Iterator[tuple[int, int | None, list[int], np.ndarray]]:
    """Each worker's blocks: (worker, first block, hashes, tokens), the shared beginning before what follows it."""
    workers, hot, _ = data["numbers"].tolist()
    chains, tokens, owners = data["chain_hashes"], data["chains"], data["owners"]
    size = tokens.shape[1] // chains.shape[1]
    for worker in range(workers):
        yield worker, None, chains[0, :hot].tolist(), tokens[0, : hot * size]
    for hashes, words, holders in zip(chains, tokens, owners.tolist(), strict=True):
        for worker in holders:
            yield worker, int(hashes[hot - 1]), hashes[hot:].tolist(), words[hot * size :]


def measure_tree(data: Data) -> dict[str, Any]:
    from dynamo.llm import RadixTree  # noqa: PLC0415

    tree = RadixTree()
    gc.collect()
    before, blocks = resident_bytes(), 0
    for number, (worker, parent, hashes, _) in enumerate(told(data)):
        stored = {
            "parent_hash": parent,
            "blocks": [{"block_hash": block, "tokens_hash": block} for block in hashes],
        }
        event = {"event_id": number, "data": {"stored": stored}, "dp_rank": 0}
        tree.apply_event(worker, json.dumps(event).encode())
        blocks += len(hashes)
    longest = data["chain_hashes"][-1].tolist()
    assert max(tree.find_matches(longest).scores.values()) == len(longest)
    gc.collect()
    grown = resident_bytes() - before
    walls = []
    for row in data["prompt_hashes"]:
        prompt = row.tolist()
        began = time.perf_counter_ns()
        len(tree.find_matches(prompt).scores)
        walls.append(time.perf_counter_ns() - began)
    return {**spread(walls), "bytes_per_block": grown / blocks, "measured": "find_matches and its scores"}


async def measure_service(data: Data) -> dict[str, Any]:
    import msgpack  # noqa: PLC0415
    import zmq  # noqa: PLC0415
    from dynamo.llm import SelectionService  # noqa: PLC0415

    workers, _, block_size = data["numbers"].tolist()
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, workers + 64)
    service = SelectionService()
    with tempfile.TemporaryDirectory() as folder:
        publishers = [context.socket(zmq.PUB) for _ in range(workers)]
        for worker, publisher in enumerate(publishers):
            endpoint = f"ipc://{folder}/{worker}"
            publisher.set(zmq.SNDHWM, 0)
            publisher.bind(endpoint)
            await service.upsert_worker(
                {
                    "worker_id": worker,
                    "model_name": "m",
                    "endpoint": f"10.0.0.1:{worker}",
                    "block_size": block_size,
                    "max_num_batched_tokens": 8192,
                    "total_kv_blocks": 1 << 20,
                    "kv_events_endpoints": {0: endpoint},
                }
            )
        await asyncio.sleep(2)  # a subscriber that is late misses what was said
        gc.collect()
        before, blocks, sequences = resident_bytes(), 0, [0] * workers
        for worker, parent, hashes, tokens in told(data):
            event = ["BlockStored", hashes, parent, tokens.tolist(), block_size, None, "GPU", None]
            payload = msgpack.packb([time.time(), [event], 0])
            publishers[worker].send_multipart([b"", struct.pack(">Q", sequences[worker]), payload])
            sequences[worker] += 1
            blocks += len(hashes)
            await asyncio.sleep(0)
        await settled(service, data)
        gc.collect()
        grown = resident_bytes() - before
        walls = await select(service, data["prompts"], held=_HELD * workers)
        await service.shutdown_async()
        context.destroy(linger=0)
    return {**spread(walls), "bytes_per_block": grown / blocks, "measured": "select_and_reserve, tokens given"}


async def settled(service: Any, data: Data) -> None:
    """Return when the service has taken in the last chains on all of their workers."""
    deadline = time.monotonic() + _SETTLE_S
    for tokens, holders in zip(data["chains"][::-1][:50], data["owners"][::-1][:50].tolist(), strict=True):
        request = {"model_name": "m", "token_ids": tokens.tolist()}
        while True:
            scores = await service.overlap_scores(request)
            full = {each["worker_id"] for each in scores["workers"] if each["device_blocks"] == scores["num_blocks"]}
            if full >= set(holders):
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sorted(full)} of {sorted(holders)} hold a chain")
            await asyncio.sleep(0.2)


async def select(service: Any, prompts: np.ndarray, *, held: int) -> list[int]:
    """Decide, with as many reservations held as ours has leases; the first rounds are not measured."""
    walls: list[int] = []
    open_ids: deque[str] = deque()
    for number in range(held + len(prompts)):
        request = {"model_name": "m", "token_ids": prompts[number % len(prompts)].tolist(), "selection_id": f"{number}"}
        began = time.perf_counter_ns()
        await service.select_and_reserve(request)
        if number >= held:
            walls.append(time.perf_counter_ns() - began)
        await service.prefill_complete(f"{number}")
        open_ids.append(f"{number}")
        if len(open_ids) > held:
            await service.free_reservation(open_ids.popleft())
    return walls


def spread(ns: list[int]) -> dict[str, float]:
    return {f"p{share}_us": float(np.percentile(ns, share)) / 1000 for share in (50, 99)}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
