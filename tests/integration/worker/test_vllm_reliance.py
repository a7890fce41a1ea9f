"""What adapters and embeddings rely on in vLLM: an upgrade that takes it away fails here first."""

import dataclasses
import inspect

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_adapters_find_what_they_rely_on() -> None:
    """The request, the calls, the arguments, and that a block's hash covers the adapter's name."""
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.lora.request import LoRARequest  # noqa: PLC0415
    from vllm.v1.core.kv_cache_utils import _gen_lora_extra_hash_keys, to_event_extra_keys  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    request = LoRARequest(lora_name="legal@1", lora_int_id=1, lora_path="/x")
    assert "lora_request" in inspect.signature(AsyncLLM.generate).parameters
    assert list(inspect.signature(AsyncLLM.add_lora).parameters) == ["self", "lora_request"]
    assert list(inspect.signature(AsyncLLM.remove_lora).parameters) == ["self", "lora_id"]
    arguments = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert {"enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank"} <= arguments

    class Asked:
        lora_request = request

    keys = tuple(_gen_lora_extra_hash_keys(Asked()))
    assert to_event_extra_keys([keys]) == [("legal@1",)]


def test_embeddings_find_what_they_rely_on() -> None:
    """The runner, the task, and the call."""
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.outputs import PoolingOutput, PoolingRequestOutput  # noqa: PLC0415
    from vllm.pooling_params import PoolingParams  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    assert {"runner", "enable_prefix_caching"} <= {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert PoolingParams(task="embed").task == "embed"
    assert list(inspect.signature(AsyncLLM.encode).parameters)[1:4] == ["prompt", "pooling_params", "request_id"]
    assert "data" in {field.name for field in dataclasses.fields(PoolingOutput)}
    assert "outputs" in inspect.signature(PoolingRequestOutput).parameters
