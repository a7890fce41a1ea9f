"""A request as the scheduler sees it: counts and hashes, never text."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

MAX_OFFERS = 16


class Priority(IntEnum):
    """The class of a request; a lower number is served first."""

    INTERACTIVE = 1
    STANDARD = 2
    BATCH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one token costs, by class, in 1e-9 of the currency's unit."""

    version: str
    currency: str
    input_nano: int
    cached_nano: int
    output_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One model that may answer, with the prompt as that model sees it."""

    model: str
    adapter: str = ""
    prompt_tokens: int
    block_size: int = 0
    block_hashes: tuple[int, ...] = ()
    quality: float = 1.0
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that asks for a placement. `deadline_at` is on the monotonic clock of `now`."""

    request_id: str
    attempt: int
    tenant_id: str
    offers: tuple[Offer, ...]
    max_output_tokens: int
    deadline_at: float
    answers: int = 1
    key_id: str = ""
    priority: Priority = Priority.STANDARD
    cache_salt: str = ""
    excluded_workers: frozenset[str] = frozenset()
    conversation_id: str = ""
    labels: Mapping[str, str]
    value: float | None = None
    max_cost: float | None = None
    min_quality: float | None = None
    retrieved_tokens: int = 0
