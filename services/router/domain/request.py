"""A generation request as the router sees it, free of the wire format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class Role(IntEnum):
    """Who wrote a message; the numbers are those of the contract."""

    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4


class Priority(IntEnum):
    """The class of a request; the numbers are those of the contract, 0 is unset."""

    UNSPECIFIED = 0
    INTERACTIVE = 1
    STANDARD = 2
    BATCH = 3


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made. `arguments` is JSON, an object; empty for one without members."""

    id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """What the model may call. `parameters` is a JSON schema; empty where there are none."""

    name: str
    description: str = ""
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is a raw number until the request is validated."""

    role: int
    content: str
    name: str = ""
    tool_call_id: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; None is unset and takes the default that the contract names."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    n: int | None = None
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Which passages to add. `budget_s` is None where the caller left it to the router."""

    collections: tuple[str, ...]
    query: str = ""
    top_k: int | None = None
    budget_s: float | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What to generate: either messages or a raw prompt."""

    model: str
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    sampling: Sampling = Sampling()
    retrieval: Retrieval | None = None
    priority: int = Priority.UNSPECIFIED
    conversation_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    min_quality: float | None = None
    max_cost: float | None = None
    value: float | None = None
    tools: tuple[Tool, ...] = ()
