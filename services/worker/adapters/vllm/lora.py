"""LoRA adapters in vLLM: it knows them by a number, and hashes blocks by their name and path."""

from collections.abc import Mapping
from itertools import count
from typing import Any, Protocol

from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from services.kit.errors import DownstackError, Reason
from services.worker.domain.adapters import Adapter, not_found


class Llm(Protocol):
    """What is used of AsyncLLM."""

    async def add_lora(self, lora_request: LoRARequest) -> bool: ...

    async def remove_lora(self, lora_id: int) -> bool: ...


class Loras:
    """The adapters that one vLLM has loaded, by our ids."""

    def __init__(self) -> None:
        self._requests: dict[str, LoRARequest] = {}
        self._numbers = count(1)

    def request(self, adapter_id: str) -> LoRARequest | None:
        """What a request with this adapter carries. Raises DownstackError ADAPTER_NOT_FOUND."""
        if not adapter_id:
            return None
        if adapter_id not in self._requests:
            raise not_found(adapter_id)
        return self._requests[adapter_id]

    async def load(self, llm: Llm, adapter: Adapter) -> None:
        """Loads it at once: one that does not fit must fail here, and not in a step with the requests of others.

        Raises:
            DownstackError: UNSUPPORTED_FEATURE, ENGINE_DEAD.
        """
        if adapter.id in self._requests:
            return
        # The name becomes part of each block's hash and of each event, so it has to name the revision as well.
        request = LoRARequest(lora_name=adapter.id, lora_int_id=next(self._numbers), lora_path=adapter.path)
        try:
            loaded = await llm.add_lora(request)
        except EngineDeadError:
            raise _dead() from None
        except Exception as error:  # whatever the engine's process raised comes as Exception
            raise _unsupported(str(error)) from error
        if not loaded:
            raise _unsupported("the engine refused it")
        self._requests[adapter.id] = request

    async def unload(self, llm: Llm, adapter: Adapter) -> None:
        """Frees its memory. Raises DownstackError ENGINE_DEAD."""
        request = self._requests.pop(adapter.id, None)
        if request is None:
            return
        try:
            await llm.remove_lora(request.lora_int_id)
        except EngineDeadError:
            raise _dead() from None


def lora_arguments(*, max_adapters: int, max_rank: int) -> Mapping[str, Any]:
    """The engine's arguments; none without adapters, because they cost time in each step and memory."""
    if not max_adapters:
        return {}
    return {
        "enable_lora": True,
        # As many in a batch as there are at all: no request waits because of its adapter.
        "max_loras": max_adapters,
        "max_cpu_loras": max_adapters,
        "max_lora_rank": max_rank,
    }


def _dead() -> DownstackError:
    return DownstackError(Reason.ENGINE_DEAD, "The engine has died.", retry_after_s=1.0)


def _unsupported(why: str) -> DownstackError:
    lines = why.strip().splitlines()
    return DownstackError(
        Reason.UNSUPPORTED_FEATURE, f"vLLM cannot use this adapter: {lines[0][:300] if lines else 'it does not fit'}"
    )
