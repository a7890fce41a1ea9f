"""An answer as it grows: the state that the frames of a stream build up."""

from collections.abc import Sequence

from downstack.errors import Details, InternalError
from downstack.inference.v1 import inference_pb2
from downstack.types.v1 import decision_pb2, stream_pb2, usage_pb2


class Answer:
    """What is known of an answer so far. Complete once `finished` is set.

    Attributes:
        started: Who answers, and why. None before the first frame.
        finished: How it ended. None until the last frame.
        texts: The text of each of the n answers so far.
    """

    def __init__(self) -> None:
        self.started: stream_pb2.Started | None = None
        self.finished: stream_pb2.Finished | None = None
        self.texts: list[str] = [""]
        self._next_sequence = 0
        self._cached_tokens: int | None = None

    @classmethod
    def whole(cls, response: inference_pb2.GenerateOnceResponse) -> "Answer":
        """The complete answer of a unary call."""
        answer = cls()
        answer.started, answer.finished = response.started, response.finished
        answer.texts = [choice.text for choice in response.choices] or [""]
        return answer

    def apply(self, frame: inference_pb2.GenerateResponse) -> stream_pb2.Delta | None:
        """Take in the next frame; returns its piece of the answer, if it has one.

        Raises:
            InternalError: A frame is missing, repeated or out of order.
        """
        if frame.sequence != self._next_sequence or self.finished:
            raise self.broken(f"frame {frame.sequence} came where {self._next_sequence} was due")
        self._next_sequence += 1
        if frame.HasField("started"):
            self.started = frame.started
        elif frame.HasField("finished"):
            self.finished = frame.finished
        else:
            self._take(frame.delta)
            return frame.delta
        return None

    def _take(self, delta: stream_pb2.Delta) -> None:
        self.texts.extend("" for _ in range(delta.index + 1 - len(self.texts)))
        self.texts[delta.index] += delta.text
        if delta.HasField("cached_tokens"):
            self._cached_tokens = delta.cached_tokens

    def broken(self, why: str) -> InternalError:
        """The error of a stream that breaks its contract."""
        return InternalError(
            f"the stream broke off: {why}", Details(reason="BROKEN_STREAM", request_id=self.request_id)
        )

    @property
    def text(self) -> str:
        """The first answer's text so far."""
        return self.texts[0]

    @property
    def request_id(self) -> str:
        """The request's name everywhere. Empty before the first frame."""
        return self.started.request_id if self.started else ""

    @property
    def model(self) -> str:
        """The model that answers. Empty before the first frame."""
        return self.started.model if self.started else ""

    @property
    def worker_id(self) -> str:
        """The worker that answers. Empty before the first frame."""
        return self.started.worker_id if self.started else ""

    @property
    def decision(self) -> decision_pb2.Decision | None:
        """The placement and its reasons."""
        return self.started.decision if self.started and self.started.HasField("decision") else None

    @property
    def citations(self) -> Sequence[stream_pb2.Citation]:
        """The retrieved passages, in the order of their marks."""
        return self.started.citations if self.started else ()

    @property
    def usage(self) -> usage_pb2.TokenUsage | None:
        """What it consumed. None until it finished."""
        return self.finished.usage if self.finished else None

    @property
    def cost(self) -> usage_pb2.Cost | None:
        """What it cost. None until it finished."""
        return self.finished.cost if self.finished and self.finished.HasField("cost") else None

    @property
    def timings(self) -> usage_pb2.Timings | None:
        """Its timings. None until it finished."""
        return self.finished.timings if self.finished else None

    @property
    def finish_reason(self) -> str:
        """Why it ended, such as `stop` or `length`. Empty until it finished."""
        if not self.finished:
            return ""
        return usage_pb2.FinishReason.Name(self.finished.finish_reason).removeprefix("FINISH_REASON_").lower()

    @property
    def cached_tokens(self) -> int | None:
        """The part of the prompt that came from the cache. None while unknown."""
        if self.finished and self.finished.usage.HasField("input_cached"):
            return self.finished.usage.input_cached
        if self._cached_tokens is None and self.started and self.started.HasField("cached_tokens"):
            return self.started.cached_tokens
        return self._cached_tokens
