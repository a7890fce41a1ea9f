"""One request in vLLM, as this process follows it: what it holds, and how long its prompt took."""

from services.worker.adapters.vllm.gauges import Gauges
from services.worker.domain.rates import Prefill
from services.worker.ports import EngineOutput


class Visit:
    """`saw` each output, then `leave`."""

    def __init__(self, gauges: Gauges, *, prompt_tokens: int, answers: int) -> None:
        self._gauges = gauges
        self._prompt_tokens = prompt_tokens
        self._alone = gauges.inside == 0 and answers == 1
        self._held: dict[int, int] = {}
        gauges.inside += 1
        gauges.entered += 1
        self._number = gauges.entered

    def saw(self, output: EngineOutput) -> None:
        """Counts what the request holds: its prompt from the first token on, and each token."""
        if output.token_ids:
            if not self._held:
                self._saw_prompt(output)
            before = self._held.get(output.index, self._prompt_tokens)
            self._hold(output.index, before + len(output.token_ids))
        if output.ending is not None:
            self._hold(output.index, 0)

    def leave(self) -> None:
        """The request has ended, however it did."""
        self._gauges.inside -= 1
        for index in self._held:
            self._hold(index, 0)

    def _hold(self, index: int, tokens: int) -> None:
        self._gauges.context_tokens += tokens - self._held.get(index, 0)
        self._held[index] = tokens

    def _saw_prompt(self, output: EngineOutput) -> None:
        """Where no other request was in the engine, all of the time was this prompt's; the steps tell no such times."""
        if not self._alone or self._gauges.entered != self._number or output.prefill_ms is None:
            return
        cached = output.cached_tokens or 0
        new = self._prompt_tokens - cached
        steps = -(-new // self._gauges.step_tokens)
        self._gauges.rates.saw_prefill(Prefill.of(new, start=cached, steps=steps), ms=output.prefill_ms)
