"""The requests of a calibration, made of a known engine."""

import pytest

from services.worker.domain.calibration import probes
from services.worker.domain.rates import Decode, Prefill, RateEstimate, Rates

TRUE = Rates(8.0, 0.2, 20.0, 1.5, prefill_ms_per_pair=0.0002, decode_ms_per_context_token=0.001)


@pytest.mark.parametrize(("context", "block", "seqs"), [(512, 32, 8), (8192, 16, 256), (64, 32, 1), (131072, 16, 1024)])
def test_every_probe_fits_into_the_engine(context: int, block: int, seqs: int) -> None:
    """Prompt and answer fit into the context, the requests into a batch; what is said to be cached was computed."""
    computed = dict[int, int]()
    for probe in probes(context_tokens=context, block_size=block, max_num_seqs=seqs):
        assert probe.prompt_tokens + probe.answer_tokens <= context
        assert 1 <= probe.requests <= seqs
        assert probe.cached_tokens <= computed.get(probe.text, 0)
        assert probe.cached_tokens % block == 0
        computed[probe.text] = max(computed.get(probe.text, 0), probe.prompt_tokens)
    assert computed


def test_the_probes_tell_all_six_rates() -> None:
    """Made once, they determine what they are made for, whatever was declared."""
    estimate = RateEstimate(Rates(5.0, 0.1, 10.0, 0.5))
    for probe in probes(context_tokens=8192, block_size=16, max_num_seqs=64):
        new = probe.prompt_tokens - probe.cached_tokens
        if probe.requests == 1:
            prefill_ms = TRUE.prefill_ms(new, start=probe.cached_tokens)
            estimate.saw_prefill(Prefill.of(new, start=probe.cached_tokens), ms=prefill_ms)
        for token in range(1, probe.answer_tokens):
            held = probe.requests * (probe.prompt_tokens + token)
            ms = TRUE.decode_ms(probe.requests, context_tokens=held)
            estimate.saw_decode(Decode(probe.requests, held), ms=ms)
    found = estimate.current()
    assert found.prefill_ms(2000) == pytest.approx(TRUE.prefill_ms(2000), rel=0.02)
    assert found.prefill_ms_per_pair == pytest.approx(TRUE.prefill_ms_per_pair, rel=0.1)
    assert found.decode_ms_per_request == pytest.approx(TRUE.decode_ms_per_request, rel=0.05)
    assert found.decode_ms_per_context_token == pytest.approx(TRUE.decode_ms_per_context_token, rel=0.05)


def test_a_longer_probe_is_predicted_to_take_longer() -> None:
    """By prompt and by batch, so that the time that is left decides."""
    plan = list(probes(context_tokens=8192, block_size=16, max_num_seqs=64))
    alone = [probe.takes_ms(TRUE) for probe in plan if not probe.cached_tokens][:3]
    assert alone == sorted(alone)
    short = [probe for probe in plan if probe.prompt_tokens == min(one.prompt_tokens for one in plan) + 1]
    by_batch = sorted(short, key=lambda probe: probe.requests)
    assert [probe.takes_ms(TRUE) for probe in by_batch] == sorted(probe.takes_ms(TRUE) for probe in by_batch)
