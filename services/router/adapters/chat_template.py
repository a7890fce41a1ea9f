"""Renders conversations with a model's own chat template, in a sandbox."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.kit.errors import DownstackError, Reason, StartupError
from services.router.domain.request import Message, Role

_ZERO_WIDTH_SPACE = "\u200b"
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_PROBE = ({"role": "user", "content": "?"},)


class ChatTemplate:
    """The template of one model folder.

    The names of the tokenizer's special tokens inside a message are broken up by a zero-width space: text can neither
    end its own turn nor begin another one.
    """

    def __init__(self, source: str | None, *, tokens: dict[str, str], special: Sequence[str]) -> None:
        self._tokens = tokens
        self._special = (
            re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None
        )
        self._template = _environment().from_string(source) if source is not None else None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the template of a model folder. StartupError where it cannot be used at all."""
        config = _read_json(folder / "tokenizer_config.json")
        source = _source_in(folder, config)
        tokens = {name: _token_text(config.get(name)) for name in _NAMED_TOKENS}
        try:
            template = cls(source, tokens=tokens, special=_special_tokens(folder))
            if source is not None:
                template._render(_PROBE)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise StartupError(f"The chat template in {folder} cannot be used: {error}.") from None
        return template

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt up to where the model's turn begins.

        Raises UNSUPPORTED_FEATURE where the model has no template, PARAM_CONFLICT where the template refuses the
        conversation.
        """
        if self._template is None:
            raise DownstackError(
                Reason.UNSUPPORTED_FEATURE, "this model has no chat template: send `prompt` instead of `messages`"
            )
        try:
            return self._render([self._turn(message) for message in messages])
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DownstackError(
                Reason.PARAM_CONFLICT, f"the model's chat template refuses this conversation: {error}"
            ) from error

    def _render(self, turns: Sequence[dict[str, str]]) -> str:
        assert self._template is not None
        return self._template.render(messages=turns, add_generation_prompt=True, tools=None, **self._tokens)

    def _turn(self, message: Message) -> dict[str, str]:
        turn = {"role": Role(message.role).name.lower(), "content": self._inert(message.content)}
        if message.name:
            turn["name"] = self._inert(message.name)
        if message.tool_call_id:
            turn["tool_call_id"] = self._inert(message.tool_call_id)
        return turn

    def _inert(self, text: str) -> str:
        if self._special is None:
            return text
        return self._special.sub(lambda found: f"{found[0][0]}{_ZERO_WIDTH_SPACE}{found[0][1:]}", text)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _source_in(folder: Path, config: dict[str, Any]) -> str | None:
    """The default template: a file of its own, or in the tokenizer's configuration, alone or among named ones."""
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(folder: Path) -> list[str]:
    added = _read_json(folder / "tokenizer.json").get("added_tokens", [])
    return [token["content"] for token in added if token.get("special") and token.get("content")]


def _token_text(token: Any) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_bytes())
    except ValueError as error:
        raise StartupError(f"{path} cannot be read: {error}.") from None
    return loaded if isinstance(loaded, dict) else {}
