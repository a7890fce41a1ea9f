"""What an engine of the conformance suite lacks; the suite checks each of these the other way round."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Feature(StrEnum):
    """What an engine may lack."""

    CONSTRAINTS = "JSON schemas and regular expressions"
    PRIORITIES = "the lower priority first"
    ADAPTERS = "LoRA adapters"
    PREFILL_TIME = "how long queue and prefill took"


_NO_FIELD = "the contract has no field for it"

LACKING: Mapping[str, Mapping[Feature, str]] = MappingProxyType(
    {
        "sim": {Feature.CONSTRAINTS: "its tokens mean nothing; UNSUPPORTED_FEATURE"},
        "vllm": {},
        # The server behind it runs the simulated engine.
        "remote": {
            Feature.CONSTRAINTS: "as the engine behind it, whose refusal is passed on",
            Feature.PRIORITIES: _NO_FIELD,
            Feature.ADAPTERS: _NO_FIELD + "; METHOD_DISABLED",
            Feature.PREFILL_TIME: _NO_FIELD,
        },
    }
)


def lacks(kind: str, feature: Feature) -> bool:
    """Whether the table says so."""
    return feature in LACKING[kind]
