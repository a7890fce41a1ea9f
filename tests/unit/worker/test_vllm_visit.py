"""What requests hold while they are in vLLM, and whose prompt tells how long prompts take."""

import pytest

from services.worker.adapters.vllm.gauges import Gauges
from services.worker.adapters.vllm.visit import Visit
from services.worker.domain.rates import Rates
from services.worker.ports import Ending, EngineOutput

DECLARED = Rates(5.0, 0.1, 10.0, 0.5)


@pytest.fixture
def gauges() -> Gauges:
    return Gauges(DECLARED, step_tokens=64)


def first(tokens: int = 1, *, prefill_ms: float = 100.0, cached: int = 0) -> EngineOutput:
    return EngineOutput(token_ids=(7,) * tokens, prefill_ms=prefill_ms, cached_tokens=cached)


def test_a_request_holds_its_prompt_and_its_tokens_until_it_ends(gauges: Gauges) -> None:
    """Nothing before its first token, nothing after its end, however it ends."""
    one, other = (Visit(gauges, prompt_tokens=tokens, answers=1) for tokens in (100, 40))
    assert gauges.context_tokens == 0
    one.saw(first())
    other.saw(first(2))
    one.saw(EngineOutput(token_ids=(7, 7)))
    assert gauges.context_tokens == 103 + 42
    other.saw(EngineOutput(ending=Ending.LENGTH))
    other.leave()
    assert gauges.context_tokens == 103
    one.leave()  # aborted
    assert gauges.context_tokens == 0
    assert gauges.inside == 0


def test_each_answer_of_a_request_holds_the_prompt(gauges: Gauges) -> None:
    """Attention reads it for each of them."""
    visit = Visit(gauges, prompt_tokens=50, answers=2)
    for index in (0, 1):
        visit.saw(EngineOutput(index=index, token_ids=(7,)))
    assert gauges.context_tokens == 102
    visit.saw(EngineOutput(index=0, token_ids=(7,), ending=Ending.STOP))
    assert gauges.context_tokens == 51
    visit.leave()
    assert gauges.context_tokens == 0


def test_a_prompt_that_was_alone_tells_its_time(gauges: Gauges) -> None:
    """In as many steps as it took, less what was cached."""
    for new in (32, 64, 96, 128, 192) * 4:
        visit = Visit(gauges, prompt_tokens=new + 32, answers=1)
        steps = -(-new // 64)
        visit.saw(first(prefill_ms=20.0 * steps + new, cached=32))
        visit.leave()
    rates = gauges.rates.current()
    assert rates.prefill_base_ms == pytest.approx(20.0, rel=0.1)
    assert rates.prefill_ms_per_token == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("second_first", [True, False])
def test_a_prompt_beside_others_tells_nothing(gauges: Gauges, *, second_first: bool) -> None:
    """Its time was theirs, too: of one that was there before, and of one that came."""
    one, other = (Visit(gauges, prompt_tokens=100, answers=1) for _ in range(2))
    for visit in (other, one) if second_first else (one, other):
        visit.saw(first())
    assert gauges.rates.current() == DECLARED
    several = Visit(Gauges(DECLARED, step_tokens=64), prompt_tokens=100, answers=2)
    several.saw(first())
    assert gauges.rates.current() == DECLARED
