"""How long a step of the simulated engine takes."""

from services.worker.domain.rates import Rates
from services.worker.domain.sim.step import Step


def step_s(rates: Rates, step: Step) -> float:
    """The step's time in seconds; none where nothing is computed.

    A step that prefills and decodes reads the weights once, so it has one fixed time: the longer one.
    """
    ms = 0.0
    if step.prefill_tokens:
        ms += rates.prefill_base_ms + rates.prefill_ms_per_token * step.prefill_tokens
        ms += rates.prefill_ms_per_pair * step.prefill_pairs
    if step.decodes:
        ms += rates.decode_ms(step.decodes, context_tokens=step.context_tokens)
    if step.prefill_tokens and step.decodes:
        ms -= min(rates.prefill_base_ms, rates.decode_base_ms)
    return ms / 1000
