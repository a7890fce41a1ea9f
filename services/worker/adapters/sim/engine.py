"""The simulated engine behind the engine's port: the steps of the core, each as long as the rates say."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from services.kit.blocks import root_hash
from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason, StartupError
from services.kit.models import StreamDecoder, Tokenizer
from services.worker.adapters.sim.embedding import unit_vector
from services.worker.domain.adapters import Adapter, not_found
from services.worker.domain.mirror import KvChange
from services.worker.domain.rates import Rates
from services.worker.domain.sampling import Sampling
from services.worker.domain.sim.core import Shape, SimCore, SimSequence, Step
from services.worker.domain.sim.core import Token as SimToken
from services.worker.domain.sim.timing import step_s
from services.worker.domain.sim.tokens import SimModel
from services.worker.domain.stops import StopMatcher
from services.worker.ports import Ending, EngineOutput, EngineSpec, EngineStats, TokenLogprob, Vector

_VERSION = "1"


@dataclass(frozen=True)
class SimFaults:
    """What goes wrong with the engine, each time that it is started.

    Attributes:
        crash_after_s: When it dies. 0: never.
        hang_after_s: When it stops making steps. 0: never.
        slow_factor: Steps take so many times as long as the rates say.
    """

    crash_after_s: float = 0.0
    hang_after_s: float = 0.0
    slow_factor: float = 1.0


@dataclass(frozen=True)
class SimSettings:
    """What is simulated.

    Attributes:
        rates: How long a step takes.
        startup_s: How long the start takes.
        faults: What goes wrong, for tests.
        mean_output_tokens: The mean length of an answer that nothing else bounds.
        embeds: Whether the model makes embeddings, and no answers.
    """

    shape: Shape
    rates: Rates
    model: str
    startup_s: float = 0.0
    faults: SimFaults = SimFaults()
    mean_output_tokens: int = 64
    embeds: bool = False


@dataclass(eq=False)
class _Answer:
    """One of the n answers of a request, on its way to the reader."""

    index: int
    decoder: StreamDecoder
    stops: StopMatcher
    added: float
    logprobs: int | None
    outputs: "asyncio.Queue[EngineOutput]"
    admitted: float | None = None
    first: bool = True
    ended: bool = False


@dataclass
class _Totals:
    """What the engine has done since its start."""

    steps: int = 0
    generated: int = 0
    queries: int = 0
    hits: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class SimEngine:
    """Runs the core in real time. `crash` makes it die and `hang` stand still, for tests of what follows."""

    def __init__(
        self,
        settings: SimSettings,
        tokenizer: Tokenizer,
        *,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._clock = clock
        self._sleep = sleep
        self._core = SimCore(settings.shape)
        eos = min(tokenizer.eos_token_ids, default=None)
        self._model = SimModel(_alphabet(tokenizer), eos, settings.mean_output_tokens)
        self._answers: dict[str, _Answer] = {}
        self._requests: dict[str, list[str]] = {}
        self._totals = _Totals()
        self._work = asyncio.Event()
        self._changes: list[KvChange] = []
        self._changed_kv = asyncio.Event()
        self._adapters: set[str] = set()
        self._loop: asyncio.Task[None] | None = None
        self._dead = False
        self._going = asyncio.Event()
        self._going.set()

    @property
    def spec(self) -> EngineSpec:
        shape = self._settings.shape
        return EngineSpec(
            engine="sim",
            engine_version=_VERSION,
            context_tokens=shape.context_tokens,
            vocab_size=self._tokenizer.vocab_size,
            block_size=shape.block_size,
            kv_blocks=shape.kv_blocks,
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            kv_events=not self._settings.embeds,
            embeds=self._settings.embeds,
        )

    @property
    def dead(self) -> bool:
        return self._dead

    async def start(self) -> None:
        shape = self._settings.shape
        if shape.kv_blocks * shape.block_size < shape.context_tokens:
            raise StartupError(
                f"The KV cache of {shape.kv_blocks} blocks is too small for a context of {shape.context_tokens} tokens."
            )
        await self._sleep(self._settings.startup_s)
        self._loop = asyncio.create_task(self._run(), name="simulated engine")
        faults = self._settings.faults
        for after_s, fault in ((faults.crash_after_s, self.crash), (faults.hang_after_s, self.hang)):
            if after_s:
                asyncio.get_running_loop().call_later(after_s, fault)

    async def stop(self) -> None:
        self.crash()
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop

    def crash(self) -> None:
        """Dies: every request ends with ENGINE_DEAD, and no step is made any more."""
        self._dead = True
        for answer in self._answers.values():
            answer.outputs.put_nowait(EngineOutput(index=-1))
        self._totals.changed.set()

    def hang(self) -> None:
        """Makes no step any more, says nothing, and does not die."""
        self._going.clear()

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
        if sampling.json_schema is not None or sampling.regex is not None:
            raise DownstackError(Reason.UNSUPPORTED_FEATURE, "The simulated engine has no constrained output.")
        if adapter and adapter not in self._adapters:
            raise not_found(adapter)
        if self._dead:
            raise _died()
        outputs: asyncio.Queue[EngineOutput] = asyncio.Queue()
        root = self._root(adapter=adapter, cache_salt=cache_salt)
        accent = self._root(adapter=adapter, cache_salt="") if adapter else 0
        keys = [f"{request_id}/{index}" for index in range(sampling.n)]
        self._requests[request_id] = keys
        for index, key in enumerate(keys):
            self._answers[key] = self._answer(index, sampling, outputs)
            self._core.add(self._sequence(key, prompt_token_ids, sampling, root=root, accent=accent, priority=priority))
        self._work.set()
        self._totals.changed.set()
        try:
            open_answers = sampling.n
            while open_answers:
                output = await outputs.get()
                if self._dead:
                    raise _died()
                open_answers -= output.ending is not None
                yield output
        finally:
            self._forget(request_id)

    async def abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            for key in self._requests.get(request_id, ()):
                answer = self._answers[key]
                if not answer.ended:
                    answer.ended = True
                    answer.outputs.put_nowait(EngineOutput(index=answer.index, ending=Ending.ABORT))
            self._core.abort(self._requests.get(request_id, ()))
        self._publish(self._core.pool.drain_changes())
        self._totals.changed.set()

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[Vector]:
        rates = self._settings.rates
        await self._sleep((rates.prefill_base_ms + rates.prefill_ms_per_token * sum(map(len, prompts))) / 1000)
        if self._dead:
            raise _died()
        return [unit_vector(prompt) for prompt in prompts]

    async def load_adapter(self, adapter: Adapter) -> None:
        self._adapters.add(adapter.id)

    async def unload_adapter(self, adapter: Adapter) -> None:
        self._adapters.discard(adapter.id)

    async def kv_events(self) -> AsyncGenerator[Sequence[KvChange], None]:
        while True:
            await self._changed_kv.wait()
            self._changed_kv.clear()
            changes, self._changes = self._changes, []
            yield changes

    def stats(self) -> EngineStats:
        core, totals = self._core, self._totals
        return EngineStats(
            running=len(core.running),
            waiting=len(core.waiting),
            unfinished=len(core.running) + len(core.waiting),
            kv_usage=core.pool.usage,
            steps=totals.steps,
            generated_tokens=totals.generated,
            prefix_queries=totals.queries,
            prefix_hits=totals.hits,
        )

    def rates(self) -> Rates:
        return self._settings.rates

    async def changed(self) -> None:
        await self._totals.changed.wait()
        self._totals.changed.clear()

    async def _run(self) -> None:
        while not self._dead:
            if not self._core.busy:
                self._work.clear()
                await self._work.wait()
            began = self._clock.monotonic()
            step = self._core.schedule()
            for key in step.admitted:
                if key in self._answers and self._answers[key].admitted is None:
                    self._answers[key].admitted = began
            await self._sleep(step_s(self._settings.rates, step) * self._settings.faults.slow_factor)
            await self._going.wait()
            self._core.complete(step)
            self._deliver(step)

    def _deliver(self, step: Step) -> None:
        totals = self._totals
        totals.steps += 1
        totals.generated += len(step.tokens)
        totals.queries += step.queries
        totals.hits += step.hits
        for token in step.tokens:
            answer = self._answers.get(token.key)
            if answer is not None and not answer.ended:
                self._say(answer, token)
        self._publish(step.changes)
        totals.changed.set()

    def _say(self, answer: _Answer, token: SimToken) -> None:
        ending = Ending(token.ending) if token.ending else None
        # As in vLLM, the token that ends an answer has no text.
        shown = [] if ending is Ending.STOP else [token.token_id]
        text = answer.stops.push(answer.decoder.push(shown))
        if ending is not None:
            text += answer.stops.push(answer.decoder.flush()) + answer.stops.flush()
        if answer.stops.stopped:
            ending = Ending.STOP
            self._core.abort([token.key])
        answer.outputs.put_nowait(self._output(answer, token, text=text, ending=ending))
        answer.first, answer.ended = False, ending is not None

    def _output(self, answer: _Answer, token: SimToken, *, text: str, ending: Ending | None) -> EngineOutput:
        admitted = answer.admitted or answer.added
        now = self._clock.monotonic()
        return EngineOutput(
            index=answer.index,
            token_ids=(token.token_id,),
            text=text,
            logprobs=(_logprob(token, answer.logprobs, self._model.alphabet),) if answer.logprobs is not None else (),
            cached_tokens=token.cached_tokens,
            prefill_began=True,
            ending=ending,
            queue_ms=(admitted - answer.added) * 1000 if answer.first else None,
            prefill_ms=(now - admitted) * 1000 if answer.first else None,
        )

    def _answer(self, index: int, sampling: Sampling, outputs: "asyncio.Queue[EngineOutput]") -> _Answer:
        return _Answer(
            index=index,
            decoder=StreamDecoder(self._tokenizer),
            stops=StopMatcher(sampling.stop),
            added=self._clock.monotonic(),
            logprobs=sampling.logprobs,
            outputs=outputs,
        )

    def _sequence(
        self, key: str, prompt: Sequence[int], sampling: Sampling, *, root: int, accent: int, priority: int
    ) -> SimSequence:
        """`accent` makes the answers of an adapter other ones than the model's."""
        index = int(key.rpartition("/")[2])
        seed = (sampling.seed or 0) * 64 + index if sampling.temperature > 0 else index
        eos = frozenset[int]() if sampling.ignore_eos else self._tokenizer.eos_token_ids
        return SimSequence(
            key=key,
            tokens=list(prompt),
            root=root,
            stream=self._model.start(prompt, seed=(seed + accent) % 2**64),
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            ends=eos | frozenset(sampling.stop_token_ids),
            priority=priority,
        )

    def _root(self, *, adapter: str, cache_salt: str) -> int:
        settings, revision = self._settings, self._tokenizer.revision
        return root_hash(model=settings.model, tokenizer_revision=revision, adapter=adapter, cache_salt=cache_salt)

    def _forget(self, request_id: str) -> None:
        keys = self._requests.pop(request_id, [])
        self._core.abort(keys)
        for key in keys:
            self._answers.pop(key, None)
        self._totals.changed.set()

    def _publish(self, changes: Iterable[KvChange]) -> None:
        self._changes.extend(changes)
        if self._changes:
            self._changed_kv.set()


def _died() -> DownstackError:
    return DownstackError(Reason.ENGINE_DEAD, "The engine has died.", retry_after_s=1.0)


def _alphabet(tokenizer: Tokenizer) -> list[int]:
    """The tokens that read as words: letters and blanks of a byte-level vocabulary, short words of a larger one."""
    letters = tokenizer.encode("eeettaaooiinnsshhrrddlluucmfwgypbvk" + " " * 7)
    words = [
        token_id
        for token_id in range(min(tokenizer.vocab_size, 20_000))
        if (text := tokenizer.decode([token_id])).startswith(" ") and text[1:].isascii() and text[1:].isalpha()
    ]
    return words or letters


def _logprob(token: SimToken, count: int, alphabet: Sequence[int]) -> TokenLogprob:
    """A made-up log probability: the token itself is the most likely, and each further one half as likely."""
    others = [other for other in dict.fromkeys(alphabet) if other != token.token_id]
    top = [token.token_id, *others][:count]
    return TokenLogprob(token.token_id, -0.5, tuple((entry, -0.5 - 0.7 * rank) for rank, entry in enumerate(top)))
