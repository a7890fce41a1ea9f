"""The policies, by the names that the settings use."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from services.scheduler.domain.cost import Objectives
from services.scheduler.domain.grammar import Policy
from services.scheduler.domain.policies.least_loaded import least_loaded
from services.scheduler.domain.policies.ours import ours
from services.scheduler.domain.policies.round_robin import round_robin
from services.scheduler.domain.policies.uniform import uniform
from services.scheduler.domain.request import Priority


def policies(objectives: Mapping[Priority, Objectives], *, value: float) -> Mapping[str, Callable[[], Policy]]:
    """Name → a function that makes the policy with state of its own."""
    return MappingProxyType(
        {
            "worth": lambda: ours(objectives, value=value),
            "random": uniform,
            "round-robin": round_robin,
            "least-loaded": least_loaded,
        }
    )
