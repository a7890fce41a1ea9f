"""Requests from plain arguments, shared by the sync and the asyncio client."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

from downstack.inference.v1 import inference_pb2
from downstack.types.v1 import chat_pb2

Priority = Literal["interactive", "standard", "batch"]
Turn = chat_pb2.Message | Mapping[str, Any]
ToolLike = chat_pb2.Tool | Mapping[str, str]
Conversation = str | Sequence[Turn]
"""What to answer: one user message, or the turns as `{"role": ..., "content": ...}`, oldest first."""


class Options(TypedDict, total=False):
    """How to answer. Every field but `model` may be left out; defaults are those of the contract."""

    model: Required[str]
    """Name of the model; see `models`."""
    system: str
    """Instruction put before the conversation."""
    prompt: str
    """Raw text without a chat template, instead of a conversation."""
    sampling: chat_pb2.SamplingParams
    """Sampling parameters; the three below override it."""
    max_tokens: int
    """Most tokens of the answer."""
    temperature: float
    """0 is greedy; up to 2."""
    seed: int
    """Makes sampling repeatable on the same kind of worker."""
    collections: Sequence[str]
    """Collections whose passages are added to the prompt."""
    retrieval: inference_pb2.RetrievalSpec
    """Retrieval in full, instead of `collections`."""
    priority: Priority
    """Class of the request."""
    conversation_id: str
    """Keeps the events of one conversation in order."""
    labels: Mapping[str, str]
    """Copied to the ledger for grouping."""
    min_quality: float
    """Least predicted quality of the model, 0 to 1."""
    max_cost: float
    """Most that the answer may cost, in currency units."""
    value: float
    """What a perfect answer is worth, in currency units."""
    tools: Sequence[ToolLike]
    """What the model may call, as `{"name": ..., "description": ..., "parameters": JSON_SCHEMA}`."""
    timeout_s: float
    """Deadline of the call, in seconds. Default: the client's."""


def generation_spec(conversation: Conversation | None, options: Options) -> inference_pb2.GenerationSpec:
    """The request that the arguments describe.

    Raises:
        TypeError: An option has no such name.
        ValueError: A role or priority has no such name.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    spec = inference_pb2.GenerationSpec(
        model=options["model"],
        messages=_messages(conversation, options.get("system", "")),
        prompt=options.get("prompt", ""),
        sampling=_sampling(options),
        retrieval=_retrieval(options),
        conversation_id=options.get("conversation_id", ""),
        labels=options.get("labels", {}),
        min_quality=options.get("min_quality"),
        max_cost=options.get("max_cost"),
        value=options.get("value"),
        tools=[tool if isinstance(tool, chat_pb2.Tool) else chat_pb2.Tool(**tool) for tool in options.get("tools", ())],
    )
    if "priority" in options:
        spec.priority = chat_pb2.Priority.Value(f"PRIORITY_{options['priority'].upper()}")
    return spec


def _messages(conversation: Conversation | None, system: str) -> list[chat_pb2.Message]:
    turns = [_message({"role": "system", "content": system})] if system else []
    if isinstance(conversation, str):
        conversation = [{"role": "user", "content": conversation}]
    return [*turns, *(_message(turn) for turn in conversation or ())]


def _message(turn: Turn) -> chat_pb2.Message:
    if isinstance(turn, chat_pb2.Message):
        return turn
    fields = {key: value for key, value in turn.items() if key != "role"}
    return chat_pb2.Message(role=chat_pb2.Role.Value(f"ROLE_{turn['role'].upper()}"), **fields)


def _sampling(options: Options) -> chat_pb2.SamplingParams:
    sampling = chat_pb2.SamplingParams()
    sampling.CopyFrom(options.get("sampling", sampling))
    if "max_tokens" in options:
        sampling.max_tokens = options["max_tokens"]
    if "temperature" in options:
        sampling.temperature = options["temperature"]
    if "seed" in options:
        sampling.seed = options["seed"]
    return sampling


def _retrieval(options: Options) -> inference_pb2.RetrievalSpec | None:
    if "retrieval" in options:
        return options["retrieval"]
    if options.get("collections"):
        return inference_pb2.RetrievalSpec(collections=options["collections"])
    return None
