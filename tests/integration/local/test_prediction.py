"""What the scheduler predicts of the cache is what the worker delivers, across a scheduler's death."""

import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from downstack.client import Client
from downstack.local.folder import DataFolder

from tests.integration.local.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_CONVERSATIONS, _TURNS, _AT_ONCE = 10, 5, 4
_KILL_AFTER = 2
_SUBJECTS = ("tea", "rivers", "clocks", "bread", "snow", "chess", "ships", "bees", "glass", "maps")
_SHARE = 0.99


@dataclass
class Dialogue:
    """One conversation, and what was predicted and delivered at each of its turns."""

    subject: str
    turns: list[dict[str, str]] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)

    def go_on(self, client: Client, model: str) -> None:
        question = f"Question {len(self.predicted) + 1} about {self.subject}: tell me one thing more, in a few words."
        self.turns.append({"role": "user", "content": question})
        answer = client.generate(
            self.turns, model=model, system=f"You know all about {self.subject}.", max_tokens=12, temperature=0
        )
        list(answer)
        assert answer.decision is not None
        assert answer.cached_tokens is not None
        self.turns.append({"role": "assistant", "content": answer.text})
        self.predicted.append(answer.decision.predicted_cached_tokens)
        self.delivered.append(answer.cached_tokens)


@pytest.fixture(params=["sim", pytest.param("vllm", marks=pytest.mark.vllm)])
def pair(request: pytest.FixtureRequest) -> Iterator[System]:
    """A system with two workers."""
    with tempfile.TemporaryDirectory(prefix="dsl-", ignore_cleanup_errors=True) as path:
        system = System(DataFolder(Path(path) / "data"))
        try:
            system.run("up", "--engine", request.param, "--workers", "2", "--detach", budget_s=600)
            yield system
        finally:
            system.run("down", check=False)


def test_predicted_and_delivered_cached_tokens_agree(pair: System) -> None:
    """Conversations of several turns on two workers; the scheduler is killed in the middle and learns it all again."""
    dialogues = [Dialogue(subject) for subject in _SUBJECTS[:_CONVERSATIONS]]
    (model,) = pair.state.models
    with pair.client() as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        for turn in range(_TURNS):
            if turn == _KILL_AFTER:
                part = pair.state.parts["scheduler"]
                os.kill(part.pid, signal.SIGKILL)
                pair.until_back("scheduler", restarts=part.restarts + 1)
            list(pool.map(lambda dialogue: dialogue.go_on(client, model), dialogues))
    pairs = [each for one in dialogues for each in zip(one.predicted, one.delivered, strict=True)]
    agreeing = sum(predicted == delivered for predicted, delivered in pairs)
    assert agreeing >= _SHARE * len(pairs), [(n, *pair) for n, pair in enumerate(pairs) if pair[0] != pair[1]]
    assert any(delivered for _, delivered in pairs[_KILL_AFTER::_TURNS])
