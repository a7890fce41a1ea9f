"""The policies, by the names that the settings use."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from services.scheduler.domain.cost import Objectives
from services.scheduler.domain.grammar import Policy
from services.scheduler.domain.policies.dynamo import DynamoWeights, dynamo
from services.scheduler.domain.policies.least_loaded import least_loaded
from services.scheduler.domain.policies.llm_d import LlmDWeights, llm_d
from services.scheduler.domain.policies.llm_d_affinity import LlmDAffinityWeights, llm_d_affinity
from services.scheduler.domain.policies.mooncake import mooncake
from services.scheduler.domain.policies.ours import WorthWeights, ours
from services.scheduler.domain.policies.preble import PrebleWeights, preble
from services.scheduler.domain.policies.round_robin import round_robin
from services.scheduler.domain.policies.session_hash import SessionHashWeights, session_hash
from services.scheduler.domain.policies.smg import SmgWeights, smg
from services.scheduler.domain.policies.uniform import uniform
from services.scheduler.domain.request import Priority

Weights = Mapping[str, Mapping[str, float]]
_DEFAULTS: Weights = MappingProxyType({})


class UnknownWeightError(ValueError):
    """A weight was given that no policy has."""


def policies(
    objectives: Mapping[Priority, Objectives], *, value: float, weights: Weights = _DEFAULTS
) -> Mapping[str, Callable[[], Policy]]:
    """Name → a function that makes the policy with state of its own.

    `weights` are by policy and name, for those that differ from the policy's defaults. Raises UnknownWeightError.
    """
    known: dict[str, tuple[Callable[..., Policy], Any]] = {
        "worth": (partial(ours, objectives=objectives, value=value), WorthWeights()),
        "random": (uniform, None),
        "round-robin": (round_robin, None),
        "least-loaded": (least_loaded, None),
        "session-hash": (session_hash, SessionHashWeights()),
        "smg-cache-aware": (smg, SmgWeights()),
        "llm-d": (llm_d, LlmDWeights()),
        "llm-d-affinity": (llm_d_affinity, LlmDAffinityWeights()),
        "dynamo": (dynamo, DynamoWeights()),
        "mooncake": (mooncake, None),
        "preble": (preble, PrebleWeights()),
    }
    _check(weights, {name: defaults for name, (_, defaults) in known.items()})
    return MappingProxyType(
        {
            name: partial(make, replace(defaults, **weights.get(name, {}))) if defaults is not None else make
            for name, (make, defaults) in known.items()
        }
    )


def _check(weights: Weights, defaults: Mapping[str, Any]) -> None:
    for policy, given in weights.items():
        has = {each.name for each in fields(defaults[policy])} if defaults.get(policy) is not None else set()
        unknown = ", ".join(sorted(set(given) - has))
        if unknown or policy not in defaults:
            there_are = ", ".join(sorted(has)) or "none"
            raise UnknownWeightError(f"policy {policy!r} has no weights {unknown or 'at all'}; there are {there_are}")
