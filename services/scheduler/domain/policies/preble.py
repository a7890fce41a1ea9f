"""Preble's rule (E2): exploit where the known prefix is longer than the rest of the prompt, else explore.

    exploit  the cheapest of the workers that the prefix is allotted to
    explore  the cheapest of all
    cost(w)  = sum over the window's nodes allotted to w of  miss rate * count * prefill(node) / workers of the node
               + requests(w) * expected answer * decode step(w)

The nodes are those of a radix tree over what was placed; the engines are not asked. A request counts for the longest
of its nodes that is more than half of its prompt up to there; the window is three minutes, and a node that leaves it is
allotted to nobody. Left out as in the published code's defaults: eviction cost, and moving nodes between workers.
Source: Srivatsa et al., "Preble" (2024), multi_node/global_scheduler_with_time.py.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from services.scheduler.domain.grammar import BestScore, Binding, Chance, Group, Policy, Slate, Weighted
from services.scheduler.domain.request import Offer, Request
from services.scheduler.domain.roster import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PrebleWeights:
    """What can be set."""

    window_s: float = 180.0
    max_blocks: float = 1_000_000


@dataclass(slots=True, eq=False)
class _Node:
    """A stretch of prompts without a branch: `tokens` of it, `context` up to its end.

    `count`, `hits` and `asked` are of the window: requests, and tokens that were known and that there were.
    """

    parent: "_Node | None"
    blocks: int
    tokens: int
    context: int
    workers: set[str] = field(default_factory=set)
    count: int = 0
    hits: int = 0
    asked: int = 0
    share: float = 0.0

    @property
    def large(self) -> bool:
        return self.tokens > self.context - self.tokens


_Placed = tuple[float, _Node, int, int]  # when, the node that counts it, tokens known, tokens asked


class PrefixTree:
    """The nodes, by the hashes of their blocks. Bounded: the blocks that were placed longest ago are forgotten."""

    def __init__(self, *, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._node_of: OrderedDict[int, _Node] = OrderedDict()

    def deepest(self, hashes: Sequence[int]) -> tuple[_Node | None, int]:
        """The node in which the longest known prefix ends, and the blocks of that prefix."""
        found, depth = None, 0
        for block in hashes:
            node = self._node_of.get(block)
            if node is None:
                break
            found, depth = node, depth + 1
        return found, depth

    def insert(self, hashes: Sequence[int], *, block_size: int) -> _Node:
        """The node in which the prompt ends, which is made where there is none."""
        node, depth = self.deepest(hashes)
        if node is not None and depth < node.context // block_size:
            node = self._split(node, hashes[:depth], block_size=block_size)
        if depth < len(hashes):
            blocks = len(hashes) - depth
            node = _Node(node, blocks, blocks * block_size, len(hashes) * block_size)
            self._node_of.update(dict.fromkeys(hashes[depth:], node))
        assert node is not None
        for block in reversed(hashes):
            self._node_of.move_to_end(block)
        while len(self._node_of) > self._max_blocks:
            self._node_of.popitem(last=False)
        return node

    def _split(self, node: _Node, prefix: Sequence[int], *, block_size: int) -> _Node:
        """Make the part of a node that ends with the prefix a node of its own; it is allotted as the whole was."""
        start = node.context // block_size - node.blocks
        head = _Node(node.parent, len(prefix) - start, (len(prefix) - start) * block_size, len(prefix) * block_size)
        head.workers = set(node.workers)
        node.parent, node.blocks, node.tokens = head, node.blocks - head.blocks, node.tokens - head.tokens
        self._node_of.update(dict.fromkeys(prefix[start:], head))
        return head


class E2:
    """Scores and picks; remembers what it picked."""

    def __init__(self, weights: PrebleWeights) -> None:
        self._window_s = weights.window_s
        self._tree = PrefixTree(max_blocks=int(weights.max_blocks))
        self._window: deque[_Placed] = deque()
        # By worker, of the nodes allotted to it: the sums of their shares, these times tokens, these times pairs,
        # and how many nodes they are.
        self._sums: dict[str, Floats] = {}
        self._best = BestScore()

    def score(self, group: Group, _request: Request, _now: float, /) -> Floats:
        cost = self._costs(group)
        holders = self._holders(group.offer)
        if not holders:
            return -cost
        outside = np.array([worker.worker_id not in holders for worker in group.roster.workers])
        scores: Floats = -(cost + outside * (1.0 + cost.max()))
        return scores

    def _holders(self, offer: Offer) -> set[str]:
        """The workers to exploit; none: explore."""
        node, depth = self._tree.deepest(offer.block_hashes)
        if 2 * depth * offer.block_size <= offer.prompt_tokens:
            return set()
        while node is not None and not node.workers:
            node = node.parent
        return node.workers if node is not None else set()

    def _costs(self, group: Group) -> Floats:
        columns, nothing = group.columns, np.zeros(4)
        sums = np.array([self._sums.get(worker.worker_id, nothing) for worker in group.roster.workers]).T
        prefill = columns.prefill_base_ms * sums[0] + columns.prefill_ms_per_token * sums[1]
        decode = columns.requests * group.output_tokens * columns.step_ms
        cost: Floats = prefill + columns.prefill_ms_per_pair * sums[2] + decode
        return cost

    def pick(self, slate: Slate, chance: Chance, /) -> int:
        row = self._best.pick(slate, chance)
        group, worker = slate.place(row)
        if group.offer.block_hashes:
            self._placed(group.offer, worker.worker_id, slate.now)
        return row

    def _placed(self, offer: Offer, worker_id: str, now: float) -> None:
        leaf = self._tree.insert(offer.block_hashes, block_size=offer.block_size)
        counting = leaf
        while not counting.large and counting.parent is not None:
            counting = counting.parent
        known = leaf.context - leaf.tokens
        self._window.append((now, counting, known, leaf.context))
        self._count(counting, 1, known, leaf.context)
        node: _Node | None = leaf
        while node is not None:
            self._allot(node, node.workers | {worker_id})
            node = node.parent
        self._expire(now - self._window_s)

    def _expire(self, before: float) -> None:
        while self._window and self._window[0][0] < before:
            _, node, known, asked = self._window.popleft()
            self._count(node, -1, -known, -asked)
            if not node.count:
                self._allot(node, set())

    def _count(self, node: _Node, count: int, known: int, asked: int) -> None:
        node.count += count
        node.hits += known
        node.asked += asked
        self._allot(node, node.workers)

    def _allot(self, node: _Node, workers: set[str]) -> None:
        """Give a node to these workers, with its cost as it is now."""
        measure = np.array([1.0, node.tokens, node.tokens * (2 * node.context - node.tokens) / 2])
        for worker_id in node.workers:
            self._add(worker_id, -node.share * measure, -1)
        missed = 1 - node.hits / node.asked if node.asked else 0.0
        node.workers = workers
        node.share = missed * node.count / len(workers) if workers else 0.0
        for worker_id in workers:
            self._add(worker_id, node.share * measure, 1)

    def _add(self, worker_id: str, cost: Floats, nodes: int) -> None:
        sums = self._sums.get(worker_id, 0.0) + np.array([*cost, nodes])
        if sums[3]:
            self._sums[worker_id] = sums
        else:
            self._sums.pop(worker_id, None)


def preble(weights: PrebleWeights) -> Policy:
    e2 = E2(weights)
    return Policy(name="preble/1", binding=Binding.AT_ONCE, scorers=(Weighted(scorer=e2),), picker=e2)
