"""The stream of a remote server as the outputs of an engine: text, endings, log probabilities."""

from collections.abc import Iterator, Sequence

from downstack.smg import vllm_engine_pb2 as pb

from services.kit.errors import DownstackError, Reason
from services.kit.models import StreamDecoder, Tokenizer
from services.worker.domain.sampling import Sampling
from services.worker.domain.stops import StopMatcher
from services.worker.ports import Ending, EngineOutput, TokenLogprob

_ENDINGS = {"stop": Ending.STOP, "length": Ending.LENGTH, "abort": Ending.ABORT}


class _Choice:
    """One of the n answers. The contract has tokens only, so the text is made here, and stop strings are cut here."""

    def __init__(self, index: int, sampling: Sampling, tokenizer: Tokenizer) -> None:
        self.index = index
        self.ended = False
        self._least = sampling.min_tokens
        self._stop_tokens = frozenset(sampling.stop_token_ids)
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopMatcher(sampling.stop)
        self._tokens = 0

    @property
    def started(self) -> bool:
        return self._tokens > 0

    def push(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], *, cached: int | None) -> EngineOutput:
        """New tokens. A stop string ends the answer at the token that completes it."""
        text, taken = "", 0
        for token_id in token_ids:
            taken += 1
            self._tokens += 1
            text += self._text(token_id)
            if self._stops.stopped:
                break
        self.ended = self._stops.stopped
        return EngineOutput(
            index=self.index,
            token_ids=tuple(token_ids[:taken]),
            text=text,
            logprobs=tuple(logprobs[:taken]),
            cached_tokens=cached,
            prefill_began=True,
            ending=Ending.STOP if self.ended else None,
        )

    def end(self, ending: Ending) -> EngineOutput:
        """The server says that it has ended."""
        self.ended = True
        text = self._cut(self._decoder.flush()) + self._stops.flush()
        return EngineOutput(index=self.index, text=text, ending=ending)

    def _text(self, token_id: int) -> str:
        # As in vLLM, the token that ends an answer has no text.
        ends = token_id in self._stop_tokens and self._tokens > self._least
        return "" if ends else self._cut(self._decoder.push([token_id]))

    def _cut(self, text: str) -> str:
        # As in vLLM, no stop string counts within the least number of tokens.
        return text if self._tokens <= self._least else self._stops.push(text)


class AnswerReader:
    """Reads one stream."""

    def __init__(self, sampling: Sampling, tokenizer: Tokenizer) -> None:
        self._choices = [_Choice(index, sampling, tokenizer) for index in range(sampling.n)]
        self._logprobs = sampling.logprobs

    @property
    def ended(self) -> bool:
        """Whether every answer has ended."""
        return all(choice.ended for choice in self._choices)

    def read(self, response: pb.GenerateResponse) -> Iterator[EngineOutput]:
        """The outputs of one message.

        Raises:
            DownstackError: INTERNAL: the server failed with the request, or breaks the contract.
        """
        match response.WhichOneof("response"):
            case "chunk":
                yield from self._push(response.chunk, response.chunk.token_ids)
            case "complete":
                yield from self._complete(response.complete)

    def abort(self) -> Iterator[EngineOutput]:
        """The outputs that end what has not ended."""
        return (choice.end(Ending.ABORT) for choice in self._choices if not choice.ended)

    def _complete(self, complete: pb.GenerateComplete) -> Iterator[EngineOutput]:
        choice = self._choice(complete.index)
        # Servers repeat the last chunk here; only where no chunk went before are these the tokens.
        if not choice.started and complete.output_ids:
            yield from self._push(complete, complete.output_ids)
        if choice.ended:
            return
        ending = _ENDINGS.get(complete.finish_reason)
        if ending is None:
            raise DownstackError(Reason.INTERNAL, "The remote server failed with this request.")
        yield choice.end(ending)

    def _push(
        self, part: pb.GenerateStreamChunk | pb.GenerateComplete, token_ids: Sequence[int]
    ) -> Iterator[EngineOutput]:
        choice = self._choice(part.index)
        if token_ids and not choice.ended:
            logprobs = _logprobs(part.output_logprobs, count=self._logprobs)
            yield choice.push(token_ids, logprobs, cached=part.cached_tokens)

    def _choice(self, index: int) -> _Choice:
        if index >= len(self._choices):
            raise DownstackError(Reason.INTERNAL, "The remote server sent an answer that nobody asked for.")
        return self._choices[index]


def _logprobs(sent: pb.OutputLogProbs, *, count: int | None) -> tuple[TokenLogprob, ...]:
    if count is None:
        return ()
    tops = [tuple(zip(top.token_ids, top.values, strict=False))[:count] for top in sent.top_logprobs]
    tops += [()] * (len(sent.token_ids) - len(tops))
    return tuple(
        TokenLogprob(token_id, logprob, top)
        for token_id, logprob, top in zip(sent.token_ids, sent.token_logprobs, tops, strict=False)
    )
