"""vLLM's own scheduler, driven step by step: no model, no weights, no network, no clock but the count of steps."""

import json
import os
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from vllm import SamplingParams
from vllm.config import KVEventsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from bench.fidelity.observed import Observed, Record
from bench.fidelity.simulated import MODEL_NAME, REVISION
from bench.fidelity.workload import EOS, MODEL, Arrival
from services.worker.adapters.vllm.events import BlockTranslator
from services.worker.domain.mirror import KvChange
from services.worker.domain.sim.core import Shape
from services.worker.domain.sim.tokens import TokenStream

# Of a model of this shape nothing but the name of its architecture matters.
_MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "torch_dtype": "float32",
}
_ENDINGS = {"FINISHED_STOPPED": "stop", "FINISHED_LENGTH_CAPPED": "length"}


class _Published:
    """Stands where vLLM's ZeroMQ publisher is, and keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def publish(self, batch: Any) -> None:
        self.batches.append(batch.events)

    def shutdown(self) -> None:
        """Nothing to close."""


class VllmEngine:
    """The scheduler under the harness. What the model would say, the simulated model says."""

    def __init__(self, shape: Shape, *, ahead: bool = False) -> None:
        self.record = Record()
        self._scheduler = _scheduler(shape, ahead=ahead)
        self._preempted = _note_preemptions(self._scheduler)
        self._published = _Published()
        self._scheduler.kv_event_publisher = self._published
        self._hasher = get_request_block_hasher(shape.block_size, sha256_cbor)
        self._translator = BlockTranslator(model=MODEL_NAME, tokenizer_revision=REVISION, block_size=shape.block_size)
        self._streams: dict[str, tuple[Arrival, TokenStream]] = {}
        # A real request has a time of arrival; here it is the order.
        self._arrived = 0

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.has_unfinished_requests())

    def add(self, arrival: Arrival) -> None:
        self._arrived += 1
        self._streams[arrival.key] = (arrival, MODEL.start(arrival.prompt, seed=arrival.seed))
        params = SamplingParams(
            max_tokens=arrival.max_tokens,
            min_tokens=min(arrival.min_tokens, arrival.max_tokens),
            ignore_eos=True,
            stop_token_ids=[EOS] if arrival.ends else [],
        )
        request = Request(
            request_id=arrival.key,
            prompt_token_ids=list(arrival.prompt),
            sampling_params=params,
            pooling_params=None,
            arrival_time=float(self._arrived),
            cache_salt=arrival.salt or None,
            priority=arrival.priority,
            block_hasher=self._hasher,
        )
        self._scheduler.add_request(request)

    def abort(self, key: str) -> None:
        self._scheduler.finish_requests(key, RequestStatus.FINISHED_ABORTED)

    def reset(self) -> bool:
        return bool(self._scheduler.reset_prefix_cache())

    def step(self) -> None:
        self._process(self._schedule())

    def _schedule(self) -> "_Batch":
        scheduler = self._scheduler
        running = {request.request_id for request in scheduler.running}
        output = scheduler.schedule()
        scheduled = tuple(output.num_scheduled_tokens.items())
        # The scheduler forgets a request that ends; its status says how.
        requests = {key: scheduler.requests[key] for key, _ in scheduled}
        saying = frozenset(key for key, request in requests.items() if not request.is_prefill_chunk)
        admitted = tuple(key for key, _ in scheduled if key not in running)
        preempted = tuple(self._preempted)
        self._preempted.clear()
        return _Batch(output, scheduled, requests, saying, admitted, preempted)

    def _process(self, batch: "_Batch") -> None:
        """The model has computed the batch, and the scheduler hears of it."""
        scheduler = self._scheduler
        sampled = {key: self._sample(batch, key) for key, _ in batch.scheduled}
        self._updated(scheduler.update_from_output(batch.output, _as_output(sampled)))
        self.record.steps.append(
            Observed(
                scheduled=batch.scheduled,
                admitted=batch.admitted,
                preempted=batch.preempted,
                tokens=tuple(
                    (key, tokens[0], _ending(batch.requests[key])) for key, tokens in sampled.items() if tokens
                ),
                events=self._events(),
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                free_blocks=scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            )
        )

    def _sample(self, batch: "_Batch", key: str) -> list[int]:
        """What the model would say: nothing as long as the prompt is not computed to its end."""
        request = batch.requests[key]
        if key not in batch.saying or request.is_finished():
            return []
        arrival, stream = self._streams[key]
        return [stream.next(may_end=arrival.ends and request.num_output_tokens >= arrival.min_tokens)]

    def _updated(self, outputs: dict[int, Any]) -> None:
        for engine_outputs in outputs.values():
            for output in engine_outputs.outputs:
                if output.prefill_stats is not None:
                    self.record.cached[output.request_id] = output.prefill_stats.num_cached_tokens
            stats = engine_outputs.scheduler_stats
            if stats is not None:
                self.record.queries += stats.prefix_cache_stats.queries
                self.record.hits += stats.prefix_cache_stats.hits

    def _events(self) -> tuple[KvChange, ...]:
        batches, self._published.batches = self._published.batches, []
        if len(batches) > 1:
            raise RuntimeError("vLLM published more than one batch of events in a step.")
        return tuple(change for batch in batches for change in self._translator.translate(batch))


class VllmEngineAhead(VllmEngine):
    """vLLM as it runs by default: it schedules a step while the one before it is computed ("async scheduling").

    As the engine core's loop does, a call schedules a step, and completes the oldest one if two are in flight then.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, ahead=True)
        self._computing: deque[_Batch] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.has_requests() or self._computing)

    def step(self) -> None:
        if self._scheduler.has_requests():
            self._computing.append(self._schedule())
            if len(self._computing) < self._scheduler.vllm_config.max_concurrent_batches:
                return
        self._process(self._computing.popleft())


@dataclass(frozen=True)
class _Batch:
    """What was scheduled for one step, and which of its requests will say a token."""

    output: Any
    scheduled: tuple[tuple[str, int], ...]
    requests: Mapping[str, Request]
    saying: frozenset[str]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]


def _note_preemptions(scheduler: Scheduler) -> list[str]:
    """The list that preempted requests will be in, in order: the output of a step has them without one."""
    noted: list[str] = []
    preempt = scheduler._preempt_request  # noqa: SLF001

    def note(request: Request, *args: Any, **options: Any) -> None:
        noted.append(request.request_id)
        preempt(request, *args, **options)

    scheduler._preempt_request = note  # noqa: SLF001
    return noted


def _scheduler(shape: Shape, *, ahead: bool) -> Scheduler:
    # vLLM keeps one block of the pool for itself, which is never used.
    blocks = shape.kv_blocks + 1
    config = _engine_config(shape, ahead=ahead)
    config.cache_config.num_gpu_blocks = blocks
    # On a CPU vLLM never runs ahead, whatever its arguments say.
    config.scheduler_config.async_scheduling = ahead
    attention = FullAttentionSpec(block_size=shape.block_size, num_kv_heads=4, head_size=16, dtype=torch.float32)
    init_none_hash(sha256_cbor)
    return (AsyncScheduler if ahead else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=shape.block_size,
        hash_block_size=shape.block_size,
        log_stats=True,
    )


def _engine_config(shape: Shape, *, ahead: bool) -> Any:
    with tempfile.TemporaryDirectory(prefix="downstack-fidelity-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_MODEL_CONFIG))
        return AsyncEngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            max_model_len=shape.context_tokens,
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            block_size=shape.block_size,
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor",
            scheduling_policy="priority",
            async_scheduling=ahead,
            kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="null"),
        ).create_engine_config()


def _as_output(sampled: dict[str, list[int]]) -> ModelRunnerOutput:
    return ModelRunnerOutput(
        req_ids=list(sampled),
        req_id_to_index={key: index for index, key in enumerate(sampled)},
        sampled_token_ids=[list(tokens) for tokens in sampled.values()],
    )


def _ending(request: Request) -> str | None:
    return _ENDINGS.get(request.status.name)
