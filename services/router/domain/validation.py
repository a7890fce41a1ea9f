"""Validates a request against every limit that the contract states, before anything is spent on it."""

import json
import re

from services.kit.errors import Reason
from services.router.domain.findings import Findings
from services.router.domain.request import GenerationSpec, Message, Priority, Retrieval, Role, Sampling, ToolCall

MODEL_BYTES = 256
MESSAGES_MOST = 1024
PROMPT_BYTES = 1024 * 1024
NAME_BYTES = 64
TOOL_CALL_ID_BYTES = 128
CONVERSATION_BYTES = 128
LABELS_MOST = 16
LABEL_BYTES = 64
COLLECTIONS_MOST = 16
COLLECTION_BYTES = 128
QUERY_BYTES = 8 * 1024
TOP_K_MOST = 32
ANSWERS_MOST = 8
LOGPROBS_MOST = 20
STOPS_MOST = 16
STOP_BYTES = 256
STOP_TOKENS_MOST = 64
SCHEMA_BYTES = 64 * 1024
REGEX_BYTES = 8 * 1024
TOOLS_MOST = 64
DESCRIPTION_BYTES = 8 * 1024
MONEY_MOST = 1e9
BUDGET_MOST_S = 3600.0
_TOOL_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{NAME_BYTES}}}")


def validate(spec: GenerationSpec) -> None:
    """Raise one DownstackError that names every violation, or return.

    The error's reason is that of the first violation: PARAM_OUT_OF_RANGE, PARAM_CONFLICT, PROMPT_TOO_LONG,
    BAD_ENCODING or BAD_SCHEMA.
    """
    found = Findings()
    _check_model(spec, found)
    _check_text(spec, found)
    _check_sampling(spec.sampling, found)
    if spec.retrieval is not None:
        _check_retrieval(spec, spec.retrieval, found)
    _check_tools(spec, found)
    _check_terms(spec, found)
    found.raise_if_any()


def _check_model(spec: GenerationSpec, found: Findings) -> None:
    if not spec.model:
        found.add("spec.model", "is required")
    found.bytes_at_most("spec.model", spec.model, most=MODEL_BYTES)


def _check_text(spec: GenerationSpec, found: Findings) -> None:
    if spec.messages and spec.prompt:
        found.add("spec.prompt", "must not be set together with messages", reason=Reason.PARAM_CONFLICT)
    if not spec.messages and not spec.prompt:
        found.add("spec.messages", "must hold at least 1 message, or prompt must be set")
    if len(spec.messages) > MESSAGES_MOST:
        found.add("spec.messages", f"must hold at most {MESSAGES_MOST} messages, holds {len(spec.messages)}")
    for position, message in enumerate(spec.messages[:MESSAGES_MOST]):
        _check_message(f"spec.messages[{position}]", message, found)
    size = len(spec.prompt.encode("utf-8", "surrogatepass"))
    if size > PROMPT_BYTES:
        found.add("spec.prompt", f"must be at most {PROMPT_BYTES} bytes, is {size}", reason=Reason.PROMPT_TOO_LONG)
    found.no_nul("spec.prompt", spec.prompt)


def _check_message(where: str, message: Message, found: Findings) -> None:
    if message.role not in set(Role):
        found.add(f"{where}.role", f"must be one of system, user, assistant or tool, is {int(message.role)}")
    if not message.content and message.role != Role.ASSISTANT:
        found.add(f"{where}.content", "is required")
    if message.tool_calls and message.role != Role.ASSISTANT:
        found.add(f"{where}.tool_calls", "is only for the role assistant", reason=Reason.PARAM_CONFLICT)
    if len(message.tool_calls) > TOOLS_MOST:
        found.add(f"{where}.tool_calls", f"must hold at most {TOOLS_MOST} calls, holds {len(message.tool_calls)}")
    for position, call in enumerate(message.tool_calls[:TOOLS_MOST]):
        _check_call(f"{where}.tool_calls[{position}]", call, found)
    found.no_nul(f"{where}.content", message.content)
    found.bytes_at_most(f"{where}.name", message.name, most=NAME_BYTES)
    found.bytes_at_most(f"{where}.tool_call_id", message.tool_call_id, most=TOOL_CALL_ID_BYTES)
    if message.tool_call_id and message.role != Role.TOOL:
        found.add(f"{where}.tool_call_id", "is only for the role tool", reason=Reason.PARAM_CONFLICT)


def _check_call(where: str, call: ToolCall, found: Findings) -> None:
    if not call.id:
        found.add(f"{where}.id", "is required")
    found.bytes_at_most(f"{where}.id", call.id, most=TOOL_CALL_ID_BYTES)
    _check_tool_name(f"{where}.name", call.name, found)
    _check_object(f"{where}.arguments", call.arguments, found)


def _check_tools(spec: GenerationSpec, found: Findings) -> None:
    if spec.tools and not spec.messages:
        found.add("spec.tools", "is only for messages", reason=Reason.PARAM_CONFLICT)
    if len(spec.tools) > TOOLS_MOST:
        found.add("spec.tools", f"must hold at most {TOOLS_MOST} tools, holds {len(spec.tools)}")
    if len({tool.name for tool in spec.tools}) < len(spec.tools):
        found.add("spec.tools", "must not hold two tools of one name", reason=Reason.PARAM_CONFLICT)
    for position, tool in enumerate(spec.tools[:TOOLS_MOST]):
        at = f"spec.tools[{position}]"
        _check_tool_name(f"{at}.name", tool.name, found)
        found.bytes_at_most(f"{at}.description", tool.description, most=DESCRIPTION_BYTES)
        found.no_nul(f"{at}.description", tool.description)
        _check_object(f"{at}.parameters", tool.parameters, found)


def _check_tool_name(where: str, name: str, found: Findings) -> None:
    if not _TOOL_NAME.fullmatch(name):
        found.add(where, f"must be 1 to {NAME_BYTES} letters, digits, underscores or hyphens")


def _check_object(where: str, text: str, found: Findings) -> None:
    found.bytes_at_most(where, text, most=SCHEMA_BYTES)
    if text and len(text) <= SCHEMA_BYTES and not _is_json_object(text):
        found.add(where, "must be a JSON object", reason=Reason.BAD_SCHEMA)


def _check_sampling(sampling: Sampling, found: Findings) -> None:
    at = "spec.sampling"
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        found.add(f"{at}.max_tokens", "must be at least 1, is 0")
    found.between(f"{at}.temperature", sampling.temperature, least=0, most=2)
    found.above(f"{at}.top_p", sampling.top_p, floor=0, most=1)
    found.between(f"{at}.min_p", sampling.min_p, least=0, most=1)
    found.between(f"{at}.frequency_penalty", sampling.frequency_penalty, least=-2, most=2)
    found.between(f"{at}.presence_penalty", sampling.presence_penalty, least=-2, most=2)
    found.above(f"{at}.repetition_penalty", sampling.repetition_penalty, floor=0, most=2)
    found.between(f"{at}.n", sampling.n, least=1, most=ANSWERS_MOST)
    found.between(f"{at}.logprobs", sampling.logprobs, least=0, most=LOGPROBS_MOST)
    _check_stops(sampling, found)
    _check_constraint(sampling, found)
    _check_conflicts(sampling, found)


def _check_stops(sampling: Sampling, found: Findings) -> None:
    at = "spec.sampling"
    if len(sampling.stop) > STOPS_MOST:
        found.add(f"{at}.stop", f"must hold at most {STOPS_MOST} strings, holds {len(sampling.stop)}")
    for position, text in enumerate(sampling.stop[:STOPS_MOST]):
        if not text:
            found.add(f"{at}.stop[{position}]", "must not be empty")
        found.bytes_at_most(f"{at}.stop[{position}]", text, most=STOP_BYTES)
    if len(sampling.stop_token_ids) > STOP_TOKENS_MOST:
        count = len(sampling.stop_token_ids)
        found.add(f"{at}.stop_token_ids", f"must hold at most {STOP_TOKENS_MOST} tokens, holds {count}")


def _check_constraint(sampling: Sampling, found: Findings) -> None:
    if sampling.json_schema is not None:
        found.bytes_at_most("spec.sampling.json_schema", sampling.json_schema, most=SCHEMA_BYTES)
        if len(sampling.json_schema) <= SCHEMA_BYTES and not _is_json_object(sampling.json_schema):
            found.add("spec.sampling.json_schema", "must be a JSON object", reason=Reason.BAD_SCHEMA)
    if sampling.regex is not None:
        if not sampling.regex:
            found.add("spec.sampling.regex", "must not be empty", reason=Reason.BAD_SCHEMA)
        found.bytes_at_most("spec.sampling.regex", sampling.regex, most=REGEX_BYTES)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _check_conflicts(sampling: Sampling, found: Findings) -> None:
    if sampling.max_tokens and sampling.min_tokens and sampling.min_tokens > sampling.max_tokens:
        found.add(
            "spec.sampling.min_tokens",
            f"must be at most max_tokens ({sampling.max_tokens}), is {sampling.min_tokens}",
            reason=Reason.PARAM_CONFLICT,
        )
    if sampling.temperature == 0 and (sampling.n or 1) > 1:
        found.add(
            "spec.sampling.n",
            "must be 1 where temperature is 0: the answers would be equal",
            reason=Reason.PARAM_CONFLICT,
        )


def _check_retrieval(spec: GenerationSpec, retrieval: Retrieval, found: Findings) -> None:
    at = "spec.retrieval"
    count = len(retrieval.collections)
    if not 1 <= count <= COLLECTIONS_MOST:
        found.add(f"{at}.collections", f"must hold 1 to {COLLECTIONS_MOST} collections, holds {count}")
    for position, name in enumerate(retrieval.collections[:COLLECTIONS_MOST]):
        if not name:
            found.add(f"{at}.collections[{position}]", "must not be empty")
        found.bytes_at_most(f"{at}.collections[{position}]", name, most=COLLECTION_BYTES)
    found.bytes_at_most(f"{at}.query", retrieval.query, most=QUERY_BYTES)
    found.between(f"{at}.top_k", retrieval.top_k, least=1, most=TOP_K_MOST)
    found.above(f"{at}.budget", retrieval.budget_s, floor=0, most=BUDGET_MOST_S)
    has_question = spec.prompt or any(m.role == Role.USER and m.content for m in spec.messages)
    if not retrieval.query and not has_question:
        found.add(f"{at}.query", "is required where there is no user message", reason=Reason.PARAM_CONFLICT)


def _check_terms(spec: GenerationSpec, found: Findings) -> None:
    """Check what bounds and labels the request as a whole."""
    if spec.priority not in set(Priority):
        found.add("spec.priority", f"is not a priority: {int(spec.priority)}")
    found.bytes_at_most("spec.conversation_id", spec.conversation_id, most=CONVERSATION_BYTES)
    if len(spec.labels) > LABELS_MOST:
        found.add("spec.labels", f"must hold at most {LABELS_MOST} labels, holds {len(spec.labels)}")
    for name, value in sorted(spec.labels.items())[:LABELS_MOST]:
        if not name:
            found.add("spec.labels", "must not have an empty name")
        found.bytes_at_most("spec.labels", name, most=LABEL_BYTES)
        found.bytes_at_most("spec.labels", value, most=LABEL_BYTES)
    found.between("spec.min_quality", spec.min_quality, least=0, most=1)
    found.between("spec.max_cost", spec.max_cost, least=0, most=MONEY_MOST)
    found.between("spec.value", spec.value, least=0, most=MONEY_MOST)
