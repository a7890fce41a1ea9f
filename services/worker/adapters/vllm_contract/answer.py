"""An answer in the messages of vLLM's contract, made from the worker's frames."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from downstack.smg import vllm_engine_pb2 as pb
from downstack.types.v1.stream_pb2 import Delta, TokenLogprob
from downstack.types.v1.usage_pb2 import FinishReason
from downstack.worker.v1.worker_pb2 import GenerateResponse as Frame

_REASONS = {FinishReason.FINISH_REASON_STOP: "stop", FinishReason.FINISH_REASON_LENGTH: "length"}


@dataclass
class _Choice:
    """One of the n answers so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Answer:
    """Turns frames into chunks and one Complete for each of the n answers."""

    def __init__(self, *, prompt_tokens: int, max_tokens: int, n: int, stream: bool) -> None:
        self._prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens
        self._choices = [_Choice() for _ in range(n)]
        self._stream = stream
        self._cached = 0

    def read(self, frame: Frame) -> Iterator[pb.GenerateResponse]:
        """The messages that a frame makes."""
        match frame.WhichOneof("frame"):
            case "delta":
                yield from self._delta(frame.delta)
            case "finished":
                yield from self._complete(frame.finished.finish_reason)

    def aborted(self) -> Iterator[pb.GenerateResponse]:
        """The messages that end an answer that was aborted."""
        return (self._end(index, "abort") for index in range(len(self._choices)))

    def _delta(self, delta: Delta) -> Iterator[pb.GenerateResponse]:
        choice = self._choices[delta.index]
        choice.tokens += delta.token_ids
        choice.logprobs += delta.logprobs
        if delta.HasField("cached_tokens"):
            self._cached = delta.cached_tokens
        if self._stream and delta.token_ids:
            chunk = pb.GenerateStreamChunk(
                token_ids=delta.token_ids,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=len(delta.token_ids),
                cached_tokens=self._cached,
                output_logprobs=_logprobs(delta.logprobs),
                index=delta.index,
            )
            yield pb.GenerateResponse(chunk=chunk)

    def _complete(self, last: "FinishReason.ValueType") -> Iterator[pb.GenerateResponse]:
        for index, choice in enumerate(self._choices):
            # A frame names the reason of the answer that ended last; the others follow from their lengths.
            full = "length" if len(choice.tokens) >= self._max_tokens else "stop"
            yield self._end(index, _REASONS.get(last, "error") if len(self._choices) == 1 else full)

    def _end(self, index: int, reason: str) -> pb.GenerateResponse:
        choice = self._choices[index]
        # What went out in chunks is not repeated.
        rest = _Choice() if self._stream else choice
        complete = pb.GenerateComplete(
            output_ids=rest.tokens,
            finish_reason=reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(choice.tokens),
            cached_tokens=self._cached,
            output_logprobs=_logprobs(rest.logprobs),
            index=index,
        )
        return pb.GenerateResponse(complete=complete)


def _logprobs(entries: Iterable[TokenLogprob]) -> pb.OutputLogProbs | None:
    found = pb.OutputLogProbs()
    for entry in entries:
        found.token_logprobs.append(entry.logprob)
        found.token_ids.append(entry.token_id)
        if entry.top:
            top = pb.TopLogProbs(
                values=[other.logprob for other in entry.top], token_ids=[other.token_id for other in entry.top]
            )
            found.top_logprobs.append(top)
    return found if found.token_ids else None
