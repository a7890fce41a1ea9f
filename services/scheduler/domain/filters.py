"""The filters that every policy keeps to: what a worker cannot do, and what the caller does not want."""

from dataclasses import dataclass

import numpy as np

from services.scheduler.domain.grammar import Binding, Filter, Group
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.request import Request
from services.scheduler.domain.roster import NANO, Bools, without


class HoldsAdapter:
    """Excludes workers without the adapter that is asked for."""

    name = "adapter"

    def admits(self, group: Group, _request: Request, /) -> Bools | bool:
        adapter = group.offer.adapter
        if not adapter:
            return True
        return np.fromiter((worker.spec.holds(adapter) for worker in group.roster.workers), np.bool_, len(group))


class Ready:
    """Excludes workers that are lost, draining or not healthy."""

    name = "ready"

    def admits(self, group: Group, _request: Request, /) -> Bools:
        return group.columns.ready > 0


class NotTried:
    """Excludes workers that the caller tried already."""

    name = "not-tried"

    def admits(self, group: Group, request: Request, /) -> Bools | bool:
        if not request.excluded_workers:
            return True
        return without(group.roster.rows, request.excluded_workers, count=len(group))


class Context:
    """Excludes workers whose context or KV cache cannot hold the prompt and one token."""

    name = "context"

    def admits(self, group: Group, _request: Request, /) -> Bools:
        return group.offer.prompt_tokens < group.columns.prompt_room


class Bounds:
    """Excludes what costs more, or is worth less, than the caller allows."""

    name = "bounds"

    def admits(self, group: Group, request: Request, /) -> Bools | bool:
        if request.min_quality is not None and group.offer.quality < request.min_quality:
            return False
        return request.max_cost is None or group.charges_nano <= request.max_cost * NANO


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Excludes workers that are full: what waits, waits where its order can still change.

    A worker is full with its batch and the look-ahead, or when its leases will need all of its cache: one may go
    beyond it, and waits in the engine, so that a long prompt does not wait for a large room for ever. One that holds
    more than half of the prompt may be given some more: elsewhere the prompt would have to be computed again, which
    makes all others wait.
    """

    look_ahead: int
    prefix_ahead: int
    name: str = "capacity"

    def admits(self, group: Group, _request: Request, /) -> Bools:
        columns = group.columns
        held = 2 * group.cached_tokens > group.offer.prompt_tokens
        ahead = self.look_ahead + self.prefix_ahead * held.astype(np.float64)
        place = columns.requests < np.maximum(1, columns.max_num_seqs + ahead)
        fits: Bools = place & (held | (columns.kv_room > 0))
        idle: Bools = columns.requests == 0
        return fits | idle


def required(binding: Binding, limits: Limits) -> tuple[Filter, ...]:
    """The filters of every policy of that binding, in the order in which they name the reason."""
    always = (HoldsAdapter(), Ready(), NotTried(), Context(), Bounds())
    if binding is Binding.AT_ONCE:
        return always
    return (*always, Capacity(look_ahead=limits.look_ahead, prefix_ahead=limits.prefix_ahead))
