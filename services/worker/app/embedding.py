"""Texts to vectors: no lease and no usage record, only what an engine computes at once."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.worker.app import metrics
from services.worker.app.engine_call import on_engine
from services.worker.app.engine_life import EngineLife
from services.worker.domain.embedding import check_lengths, check_texts, too_many
from services.worker.ports import Vector


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors in the order of the texts, and the tokens that these were."""

    vectors: Sequence[Vector]
    tokens: int


class Embedding:
    """Embeds on the engine that runs now.

    Args:
        encode: A text's tokens, special ones included.
        max_texts: The most texts at once, over all calls.
    """

    def __init__(self, life: EngineLife, *, encode: Callable[[str], Sequence[int]], max_texts: int) -> None:
        self._life = life
        self._encode = encode
        self._max_texts = max_texts
        self._texts = 0

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """The vectors of some texts.

        Raises:
            DownstackError: PARAM_OUT_OF_RANGE, PROMPT_TOO_LONG, OVERLOADED, ENGINE_DEAD.
        """
        check_texts(texts)
        if self._texts + len(texts) > self._max_texts:
            raise too_many(self._max_texts)
        self._texts += len(texts)
        try:
            with metrics.EMBED.time():
                # In a thread: a call's texts may be some megabytes.
                prompts = await asyncio.to_thread(lambda: [self._encode(text) for text in texts])
                check_lengths(prompts, context_tokens=self._life.engine.spec.context_tokens)
                vectors = await on_engine(self._life, lambda engine: engine.embed(prompts))
        finally:
            self._texts -= len(texts)
        tokens = sum(map(len, prompts))
        metrics.EMBEDDED.labels("texts").inc(len(texts))
        metrics.EMBEDDED.labels("tokens").inc(tokens)
        return Embedded(vectors, tokens)
