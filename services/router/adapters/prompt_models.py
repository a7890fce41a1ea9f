"""The models' templates and tokenizers, with long prompts kept off the event loop."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Self

from services.kit.models import Tokenizer, model_folder
from services.router.adapters.chat_template import ChatTemplate
from services.router.domain.request import Message, Tool


class LoadedModel:
    """One model folder's template and tokenizer.

    Tokenizing takes about a second for four megabytes. Prompts of at least `offload_chars` characters go to the
    executor's threads; the tokenizer lets other threads run meanwhile.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, *, executor: Executor, offload_chars: int) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._executor = executor
        self._offload_chars = offload_chars

    @classmethod
    def load(cls, ref: str, *, executor: Executor, offload_chars: int) -> Self:
        """Read a model folder. StartupError where it is not one."""
        folder = model_folder(ref)
        return cls(ChatTemplate.load(folder), Tokenizer.load(folder), executor=executor, offload_chars=offload_chars)

    @property
    def revision(self) -> str:
        return self._tokenizer.revision

    async def chat_tokens(self, messages: Sequence[Message], *, tools: Sequence[Tool] = ()) -> list[int]:
        length = sum(len(message.content) for message in messages)
        length += sum(len(tool.description) + len(tool.parameters) for tool in tools)
        # The template writes the special tokens itself.
        return await self._run(length, lambda: self._tokenizer.encode(self._template.render(messages, tools=tools)))

    async def text_tokens(self, text: str) -> list[int]:
        return await self._run(len(text), lambda: self._tokenizer.encode(text, add_special_tokens=True))

    async def count(self, text: str) -> int:
        return len(await self._run(len(text), lambda: self._tokenizer.encode(text)))

    async def _run(self, length: int, work: Callable[[], list[int]]) -> list[int]:
        if length < self._offload_chars:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
