"""Puts the frames of a stream together into one answer."""

from downstack.inference.v1 import inference_pb2 as inference_pb


class OnceCollector:
    """Collects the frames of one request; the choices come out in order of their index."""

    def __init__(self) -> None:
        self._response = inference_pb.GenerateOnceResponse()
        self._texts: dict[int, list[str]] = {}
        self._choices: dict[int, inference_pb.Choice] = {}

    def add(self, frame: inference_pb.GenerateResponse) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "delta":
            delta = frame.delta
            choice = self._choices.setdefault(delta.index, inference_pb.Choice())
            choice.token_ids.extend(delta.token_ids)
            choice.logprobs.extend(delta.logprobs)
            # Joined at the end: appending to a message's string copies it each time.
            self._texts.setdefault(delta.index, []).append(delta.text)
        elif kind == "started":
            self._response.started.CopyFrom(frame.started)
        elif kind == "finished":
            self._response.finished.CopyFrom(frame.finished)

    def response(self) -> inference_pb.GenerateOnceResponse:
        for index in range(max(self._choices, default=0) + 1):
            choice = self._choices.get(index, inference_pb.Choice())
            choice.text = "".join(self._texts.get(index, ()))
            self._response.choices.append(choice)
        return self._response
