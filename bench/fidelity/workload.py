"""Seeded workloads for engines: what arrives, what is aborted, and in which step."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from services.worker.domain.sim.core import Shape
from services.worker.domain.sim.tokens import SimModel

EOS = 1
MODEL = SimModel(alphabet=range(1000, 1400), eos=EOS, mean_output_tokens=48)
# The pool has room for many contexts; for one or little more; the same, and short prompts have long answers, so that
# many are admitted that cannot all end without preemptions.
LARGE, SMALL, CROWDED = KINDS = ("large pool", "small pool", "crowded pool")
_SALTS = ("", "tenant-a", "tenant-b")
_HALF: Final = 0.5
# How often a prompt is: the whole blocks of a shared prefix; a conversation that goes on; a shared prefix and more.
_SHARE_WHOLE: Final = 0.1
_SHARE_CONVERSATION: Final = 0.35
_SHARE_PREFIX: Final = 0.45


@dataclass(frozen=True)
class Arrival:
    """One request. Both engines give it the tokens that the simulated model says with this seed."""

    key: str
    step: int
    prompt: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    priority: int
    salt: str
    seed: int
    ends: bool


@dataclass(frozen=True)
class Workload:
    """What happens to one engine. All of a step's events come before it is scheduled.

    Attributes:
        kind: What is special about it, for tables.
        aborts: Keys by step; a request may be waiting, running, done or not there yet.
        resets: The steps before which the prefix cache is reset, which works only where no block is in use.
    """

    seed: int
    kind: str
    shape: Shape
    arrivals: tuple[Arrival, ...]
    aborts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    resets: frozenset[int] = frozenset()

    @property
    def last_step(self) -> int:
        """The step of the last event."""
        return max([*(one.step for one in self.arrivals), *self.aborts, *self.resets], default=0)


def workload(seed: int) -> Workload:
    """The workload of a seed: the kinds in turn, everything else drawn."""
    random = Random(seed)
    kind = KINDS[seed % len(KINDS)]
    shape = _shape(random, kind)
    arrivals = tuple(_arrivals(random, shape, kind))
    aborts: dict[int, tuple[str, ...]] = {}
    share = random.choice((0.0, 0.1, 0.4))
    for one in arrivals:
        if random.random() < share:
            step = max(0, one.step + random.randint(-1, 60))
            aborts[step] = (*aborts.get(step, ()), one.key)
    resets = frozenset(random.randint(0, 200) for _ in range(random.choice((0, 0, 3))))
    return Workload(seed, kind, shape, arrivals, aborts, resets)


def _shape(random: Random, kind: str) -> Shape:
    block_size = random.choice((8, 16, 32))
    context = random.choice((256, 512, 1024))
    needed = context // block_size
    large = kind == LARGE
    return Shape(
        block_size=block_size,
        kv_blocks=needed * random.randint(8, 24) if large else random.randint(needed, needed * 3 // 2),
        context_tokens=context,
        max_num_seqs=random.choice((1, 2, 4, 8, 16, 32) if large else (4, 8, 16, 32)),
        max_num_batched_tokens=random.choice((32, 64, 96, 256, 1024)),
    )


def _arrivals(random: Random, shape: Shape, kind: str) -> Iterator[Arrival]:
    crowded = kind == CROWDED
    priorities = random.choice(((0,), (0,), (-1, 0, 1), (-5, 0, 0, 0, 5)))
    salts = _SALTS[: random.randint(1, len(_SALTS))]
    gap = random.choice((0.0, 1.0) if crowded else (0.0, 0.0, 1.0, 5.0))
    longest_answer = random.choice((100, 200, 400) if crowded else (8, 64, 200, 400))
    prompts = _Prompts(random, shape, longest=shape.context_tokens // 6 if crowded else shape.context_tokens - 1)
    step = 0.0
    for number in range(random.randint(8, 48)):
        arrival = Arrival(
            key=f"r{number}",
            step=int(step),
            prompt=prompts.next(),
            max_tokens=random.randint(1, longest_answer),
            min_tokens=random.choice((0, 0, 4)),
            priority=random.choice(priorities),
            salt=random.choice(salts),
            seed=random.randint(0, 3),
            ends=random.random() < _HALF,
        )
        prompts.answered(arrival)
        yield arrival
        if gap:
            step += random.expovariate(1 / gap)


class _Prompts:
    """Prompts that share prefixes: systems' prompts, conversations that go on, and the same prompt once more."""

    def __init__(self, random: Random, shape: Shape, *, longest: int) -> None:
        self._random = random
        self._longest = longest
        self._block_size = shape.block_size
        self._prefixes = [self._fresh(self._longest // 2) for _ in range(random.randint(1, 4))]
        self._conversations: list[tuple[int, ...]] = []

    def next(self) -> tuple[int, ...]:
        """Another prompt that fits into the context."""
        random = self._random
        draw = random.random()
        if draw < _SHARE_WHOLE:
            prompt = self._whole_blocks(random.choice(self._prefixes))
        elif draw < _SHARE_WHOLE + _SHARE_CONVERSATION and self._conversations:
            turn = random.choice((0, 1, random.randint(1, self._longest // 4)))
            prompt = random.choice(self._conversations) + self._tokens(turn)
        elif draw < _SHARE_WHOLE + _SHARE_CONVERSATION + _SHARE_PREFIX:
            prompt = random.choice(self._prefixes) + self._fresh(self._longest // 4)
        else:
            prompt = self._fresh(self._longest)
        return prompt[: self._longest]

    def answered(self, arrival: Arrival) -> None:
        """A conversation can go on after this request's answer, or be asked again."""
        stream = MODEL.start(arrival.prompt, seed=arrival.seed)
        answer = tuple(stream.next(may_end=False) for _ in range(arrival.max_tokens))
        self._conversations += [arrival.prompt, arrival.prompt + answer]

    def _whole_blocks(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return tokens[: max(1, len(tokens) // self._block_size) * self._block_size]

    def _fresh(self, most: int) -> tuple[int, ...]:
        return self._tokens(self._random.randint(1, max(1, most)))

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.randint(3, 30000) for _ in range(count))
