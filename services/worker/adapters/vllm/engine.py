"""vLLM behind the engine's port: AsyncLLM in this process, its engine core in a child."""

import asyncio
import multiprocessing
import shutil
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from vllm import __version__ as vllm_version
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from services.kit.errors import DownstackError, Reason, StartupError
from services.worker.adapters.vllm.calibration import calibrate
from services.worker.adapters.vllm.events import BlockTranslator
from services.worker.adapters.vllm.gauges import Gauges
from services.worker.adapters.vllm.lora import Loras
from services.worker.adapters.vllm.params import RequestFailedError, engine_outputs, vllm_params
from services.worker.adapters.vllm.pooling import embed
from services.worker.adapters.vllm.processes import kill
from services.worker.adapters.vllm.pulse import Pulse
from services.worker.adapters.vllm.stats import StatLogger
from services.worker.adapters.vllm.subscription import Subscription
from services.worker.adapters.vllm.visit import Visit
from services.worker.domain.adapters import Adapter
from services.worker.domain.mirror import KvChange
from services.worker.domain.rates import Rates
from services.worker.domain.sampling import Sampling
from services.worker.ports import EngineOutput, EngineSpec, EngineStats, Vector

_log = structlog.get_logger()
_SHUTDOWN_S = 5.0
_ANSWER_S = 1.0


@dataclass(frozen=True)
class VllmModel:
    """What is served, by the names that go into the block hashes."""

    model: str
    tokenizer_revision: str
    vocab_size: int


class VllmEngine:
    """One AsyncLLM. A dead one stays dead, and another one takes its place."""

    def __init__(
        self, args: AsyncEngineArgs, model: VllmModel, *, declared: Rates, calibration: str, scratch: Path
    ) -> None:
        self._args = args
        self._calibration = calibration
        self._scratch = scratch
        self._model = model
        self._gauges = Gauges(declared, step_tokens=args.max_num_batched_tokens)
        self._loras = Loras()
        self._llm: Any = None
        self._events: Subscription | None = None
        self._spec: EngineSpec | None = None
        self._pids: list[int] = []
        self._pulse: Pulse | None = None
        self._beating: asyncio.Task[None] | None = None
        self._given_up = threading.Event()

    @property
    def spec(self) -> EngineSpec:
        if self._spec is None:
            raise DownstackError(Reason.ENGINE_DEAD, "The engine has not started yet.", retry_after_s=5.0)
        return self._spec

    @property
    def dead(self) -> bool:
        return self._llm is not None and bool(self._llm.errored)

    async def start(self) -> None:
        try:
            # In a thread, so that health can be asked meanwhile: it takes from seconds to minutes.
            self._llm = await asyncio.to_thread(self._load)
            await self._set_up()
        except asyncio.CancelledError:
            # The thread ends when its children do, or undoes its work.
            self._given_up.set()
            kill(child.pid for child in multiprocessing.active_children() if child.pid is not None)
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise StartupError(f"vLLM cannot serve the model {self._model.model!r}: {_first_line(error)}") from error
        except (EngineDeadError, DownstackError) as error:
            raise StartupError(f"vLLM died while it started with the model {self._model.model!r}.") from error

    async def stop(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
        if self._events is not None:
            self._events.close()
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # or it takes the end of the engine for its death
            if self._pulse is None or not await self._pulse.answers(within_s=_ANSWER_S):
                kill(self._pids)
            await asyncio.to_thread(llm.shutdown, timeout=_SHUTDOWN_S)
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def _set_up(self) -> None:
        llm = self._llm
        self._pids = [process.pid for process in llm.engine_core.resources.engine_manager.processes]
        await llm.collective_rpc("end_with_parent")
        self._spec = self._described()
        kv = self._args.kv_events_config
        if kv is not None:
            self._events = Subscription(endpoint=kv.endpoint, replay_endpoint=kv.replay_endpoint)
        if self._calibration != "off" and kv is not None:
            await calibrate(self, self._gauges.rates, forget=llm.reset_prefix_cache)
        self._pulse = Pulse(
            lambda: llm.collective_rpc("answer"), steps=lambda: self._gauges.steps, pids=tuple(self._pids)
        )
        self._beating = asyncio.create_task(self._pulse.run(), name="pulse of vLLM")

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        *,
        request_id: str,
        cache_salt: str,
        priority: int,
        adapter: str = "",
    ) -> AsyncGenerator[EngineOutput, None]:
        lora = self._loras.request(adapter)
        steps = self._gauges.steps
        prompt = TokensPrompt(prompt_token_ids=list(prompt_token_ids), cache_salt=cache_salt or None)
        tokens = 0
        visit = Visit(self._gauges, prompt_tokens=len(prompt_token_ids), answers=sampling.n)
        try:
            outputs = self._llm.generate(
                prompt, vllm_params(sampling), request_id, priority=priority, lora_request=lora
            )
            async with aclosing(outputs) as stream:
                async for output in stream:
                    for each in engine_outputs(output, logprobs=sampling.logprobs):
                        visit.saw(each)
                        tokens += len(each.token_ids)
                        yield each if tokens else replace(each, prefill_began=self._began_since(steps))
        except EngineDeadError:
            raise DownstackError(Reason.ENGINE_DEAD, "The engine has died.", retry_after_s=1.0) from None
        except GracefulHTTPError:
            raise DownstackError(Reason.OVERLOADED, "The engine's queue is full.", retry_after_s=1.0) from None
        except (VLLMClientError, ValueError) as error:
            raise _refused(sampling, error) from None
        except RequestFailedError:
            raise _failed(sampling, tokens=tokens) from None
        except EngineGenerateError as error:
            cause = error.__cause__ or error
            _log.error("vllm_request_failed", request_id=request_id, cause=type(cause).__name__, steps=steps)
            raise DownstackError(Reason.INTERNAL, "The engine failed with this request.") from error
        finally:
            visit.leave()

    async def abort(self, request_ids: Iterable[str]) -> None:
        if self._llm is not None and not self._llm.errored:
            await self._llm.abort(list(request_ids))
            self._gauges.changed.set()

    async def embed(self, prompts: Sequence[Sequence[int]]) -> Sequence[Vector]:
        return await embed(self._llm, prompts)

    async def load_adapter(self, adapter: Adapter) -> None:
        await self._loras.load(self._llm, adapter)

    async def unload_adapter(self, adapter: Adapter) -> None:
        if self._llm is not None:
            await self._loras.unload(self._llm, adapter)

    async def kv_events(self) -> AsyncGenerator[Sequence[KvChange], None]:
        if self._events is None:
            return  # a model that embeds keeps no cache
        translator = BlockTranslator(
            model=self._model.model,
            tokenizer_revision=self._model.tokenizer_revision,
            block_size=self.spec.block_size,
        )
        async for events in self._events.batches():
            yield translator.forget() if events is None else translator.translate(events)

    def stats(self) -> EngineStats:
        gauges = self._gauges
        unfinished = self._llm.get_num_unfinished_requests() if self._llm is not None else 0
        # The last step's statistics are older than an abort that came after it.
        return EngineStats(
            running=min(gauges.running, unfinished),
            waiting=min(gauges.waiting, unfinished),
            unfinished=unfinished,
            kv_usage=gauges.kv_usage,
            steps=gauges.steps,
            generated_tokens=gauges.generated,
            prefix_queries=gauges.queries,
            prefix_hits=gauges.hits,
            pulse=self._pulse.count if self._pulse is not None else None,
        )

    def rates(self) -> Rates:
        return self._gauges.rates.current()

    async def changed(self) -> None:
        await self._gauges.changed.wait()
        self._gauges.changed.clear()

    def _load(self) -> Any:
        llm = AsyncLLM.from_engine_args(self._args, stat_loggers=[lambda _config, _index: StatLogger(self._gauges)])
        if self._given_up.is_set():
            llm.shutdown(timeout=_SHUTDOWN_S)
        return llm

    def _described(self) -> EngineSpec:
        config = self._llm.vllm_config
        return EngineSpec(
            engine="vllm",
            engine_version=vllm_version,
            context_tokens=config.model_config.max_model_len,
            vocab_size=min(self._model.vocab_size, config.model_config.get_vocab_size()),
            block_size=config.cache_config.block_size,
            kv_blocks=config.cache_config.num_gpu_blocks,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            kv_events=self._args.kv_events_config is not None,
            embeds=self._args.runner == "pooling",
        )

    def _began_since(self, steps: int) -> bool:
        """Whether a request without a token yet, given at that step, is being computed: steps went by, nothing waits.

        vLLM tells only with the first token. A prefill that fits into one step, and is aborted in it, goes unnoticed.
        """
        return self._gauges.steps > steps and self._gauges.waiting == 0


def _constrained(sampling: Sampling) -> bool:
    return sampling.json_schema is not None or sampling.regex is not None


def _failed(sampling: Sampling, *, tokens: int) -> DownstackError:
    """A constraint that passes vLLM's check may still not compile; its request then fails before its first token."""
    if _constrained(sampling) and not tokens:
        return DownstackError(Reason.BAD_SCHEMA, "The engine cannot compile the constraint.")
    return DownstackError(Reason.INTERNAL, "The engine failed with this request.")


def _refused(sampling: Sampling, error: Exception) -> DownstackError:
    reason = Reason.BAD_SCHEMA if _constrained(sampling) else Reason.PARAM_OUT_OF_RANGE
    return DownstackError(reason, f"The engine refuses the request: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
