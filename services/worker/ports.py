"""What the worker needs of an engine."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.worker.domain.adapters import Adapter
from services.worker.domain.mirror import KvChange
from services.worker.domain.rates import Rates
from services.worker.domain.sampling import Sampling

Vector = tuple[float, ...]
"""An embedding; the squares of its components sum to 1."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is, known once it has started.

    Attributes:
        kv_events: Whether it reports the changes of its KV cache.
        embeds: Whether its model makes embeddings, and no answers.
    """

    engine: str
    engine_version: str
    context_tokens: int
    vocab_size: int
    block_size: int
    kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_events: bool = True
    embeds: bool = False


class Ending(StrEnum):
    """How an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of one token, and of the most likely ones in its place, most likely first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What one step, or a few, added to one answer of a request.

    Attributes:
        index: The answer, 0 to n-1.
        token_ids: The new tokens.
        text: The new text; never splits a code point, and may lag behind the tokens until the ending.
        logprobs: One for each new token, if asked for.
        cached_tokens: The part of the prompt that came from the prefix cache. None: not known yet.
        prefill_began: Whether the engine has begun to compute the prompt; true with the first token at the latest.
        ending: How this answer ended. None: it goes on.
        queue_ms: From the engine's receipt to its first step with the request. None: unknown.
        prefill_ms: From that step to the first token. None: unknown.
    """

    index: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int | None = None
    prefill_began: bool = False
    ending: Ending | None = None
    queue_ms: float | None = None
    prefill_ms: float | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Where an engine stands. Totals count from its start.

    Attributes:
        running: Requests in the batch.
        waiting: Requests in the engine's own queue.
        unfinished: Requests that were given to the engine and have not ended, as the process itself knows it.
        kv_usage: The used share of the KV cache, 0 to 1.
        steps: Engine steps.
        generated_tokens: Tokens generated.
        prefix_queries: Prompt tokens that were looked up in the cache.
        prefix_hits: Those of them that were found.
        pulse: Changes at least once a second while the engine answers or computes, however long its step takes. None:
            it has none, and is judged by its steps.
    """

    running: int = 0
    waiting: int = 0
    unfinished: int = 0
    kv_usage: float = 0.0
    steps: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    pulse: int | None = None


class Engine(Protocol):
    """One engine with one model. Starts once and stops once."""

    @property
    def spec(self) -> EngineSpec:
        """What it is. Known after `start`."""
        ...

    async def start(self) -> None:
        """Returns when requests can be served.

        Raises:
            StartupError: The model cannot be loaded, or the machine is too small for it.
        """
        ...

    async def stop(self) -> None:
        """Ends it, and with it every request, also where it died or hangs. Harmless where it never started."""
        ...

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        *,
        request_id: str,
        cache_salt: str,
        priority: int,
        adapter: str = "",
    ) -> AsyncIterator[EngineOutput]:
        """Runs a request. Of two that wait, the one with the lower `priority` goes first.

        `adapter` is the id of an adapter that was loaded. Empty: none.

        Ends after the ending of the last answer, or soon after `abort`; closing the iterator aborts, too.

        Raises:
            DownstackError: ENGINE_DEAD, UNSUPPORTED_FEATURE, BAD_SCHEMA, PARAM_OUT_OF_RANGE, OVERLOADED.
        """
        ...

    async def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests at once. Unknown ones are ignored."""
        ...

    async def embed(self, prompts: Sequence[Sequence[int]]) -> Sequence[Vector]:
        """One vector a prompt, in their order. Only where `spec.embeds`; such an engine generates nothing.

        Raises:
            DownstackError: METHOD_DISABLED, ENGINE_DEAD, PARAM_OUT_OF_RANGE, INTERNAL.
        """
        ...

    async def load_adapter(self, adapter: Adapter) -> None:
        """Makes an adapter ready. Repeating it is harmless.

        Raises:
            DownstackError: UNSUPPORTED_FEATURE where it does not fit the model, METHOD_DISABLED, ENGINE_DEAD.
        """
        ...

    async def unload_adapter(self, adapter: Adapter) -> None:
        """Forgets an adapter that no request uses. Raises DownstackError ENGINE_DEAD."""
        ...

    def kv_events(self) -> AsyncIterator[Sequence[KvChange]]:
        """The changes of the KV cache, as they happen. To be read once, from the start on."""
        ...

    def stats(self) -> EngineStats:
        """Where it stands."""
        ...

    def rates(self) -> Rates:
        """How fast it is."""
        ...

    async def changed(self) -> None:
        """Returns at the next change of `stats`."""
        ...

    @property
    def dead(self) -> bool:
        """Whether it has died. A dead engine does not come back."""
        ...
