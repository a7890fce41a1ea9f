import pytest
from downstack.answers import Answer
from downstack.errors import InternalError
from downstack.inference.v1.inference_pb2 import GenerateResponse
from downstack.types.v1.stream_pb2 import Delta, Finished, Started
from downstack.types.v1.usage_pb2 import FINISH_REASON_STOP, Cost, TokenUsage


def frames(*contents: Started | Delta | Finished) -> list[GenerateResponse]:
    kinds = {Started: "started", Delta: "delta", Finished: "finished"}
    return [GenerateResponse(sequence=i, **{kinds[type(c)]: c}) for i, c in enumerate(contents)]


def test_an_answer_grows_frame_by_frame() -> None:
    answer = Answer()
    usage = TokenUsage(input_total=4, input_cached=2, output_total=2)
    finished = Finished(finish_reason=FINISH_REASON_STOP, usage=usage, cost=Cost(nano_units=5, currency="USD"))
    deltas = [
        answer.apply(frame)
        for frame in frames(Started(request_id="req_1", model="m"), Delta(text="a"), Delta(text="b"), finished)
    ]
    assert [delta.text for delta in deltas if delta] == ["a", "b"]
    assert (answer.text, answer.request_id, answer.finish_reason) == ("ab", "req_1", "stop")
    assert (answer.usage, answer.cached_tokens) == (usage, 2)
    assert answer.cost is not None
    assert answer.cost.nano_units == 5


def test_what_is_not_known_yet_is_none() -> None:
    answer = Answer()
    assert (answer.usage, answer.cost, answer.decision, answer.cached_tokens) == (None, None, None, None)
    assert (answer.request_id, answer.finish_reason, list(answer.citations)) == ("", "", [])
    answer.apply(frames(Started(request_id="r"))[0])
    assert answer.cached_tokens is None
    answer.apply(GenerateResponse(sequence=1, delta=Delta(text="x", cached_tokens=0)))
    assert answer.cached_tokens == 0


def test_each_of_several_answers_has_its_own_text() -> None:
    answer = Answer()
    for frame in frames(Started(), Delta(index=1, text="b"), Delta(index=0, text="a"), Delta(index=1, text="c")):
        answer.apply(frame)
    assert answer.texts == ["a", "bc"]


@pytest.mark.parametrize("sequence", [0, 2])
def test_a_repeated_or_missing_frame_is_an_error(sequence: int) -> None:
    answer = Answer()
    answer.apply(GenerateResponse(sequence=0, started=Started(request_id="req_1")))
    with pytest.raises(InternalError) as caught:
        answer.apply(GenerateResponse(sequence=sequence, delta=Delta(text="x")))
    assert (caught.value.reason, caught.value.request_id) == ("BROKEN_STREAM", "req_1")
    assert answer.text == ""


def test_nothing_may_follow_the_last_frame() -> None:
    answer = Answer()
    for frame in frames(Started(), Finished()):
        answer.apply(frame)
    with pytest.raises(InternalError):
        answer.apply(GenerateResponse(sequence=2, delta=Delta(text="x")))
