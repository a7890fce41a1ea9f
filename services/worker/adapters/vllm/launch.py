"""How vLLM is started: the environment that it reads when it is imported, and its arguments."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.kit.errors import StartupError
from services.kit.models import Tokenizer, model_folder
from services.worker.domain.rates import Rates
from services.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from services.worker.adapters.vllm.engine import VllmEngine

# A Unix socket's path has 107 bytes.
_LONGEST_FOLDER = 90


def vllm_engine(settings: WorkerSettings, tokenizer: Tokenizer, *, rates: Rates) -> "VllmEngine":
    """An engine that has not started.

    Raises:
        StartupError: vLLM is not installed, or the settings cannot work.
    """
    # vLLM keeps one block for itself.
    if settings.kv_blocks and (settings.kv_blocks - 1) * settings.block_size < settings.context_tokens:
        raise StartupError(
            f"A KV cache of {settings.kv_blocks} blocks is too small for a context of {settings.context_tokens} tokens."
        )
    prepare_environment(settings)
    try:
        # After the environment: vLLM reads it while it is imported.
        from services.worker.adapters.vllm.engine import VllmEngine, VllmModel  # noqa: PLC0415
    except ImportError as error:
        raise StartupError(f"The engine `vllm` is not installed here ({error.name} is missing).") from error
    model = VllmModel(settings.model, tokenizer.revision, tokenizer.vocab_size)
    # Of this engine alone: several workers on one machine must not hear each other's events.
    scratch = Path(tempfile.mkdtemp(prefix="downstack-"))
    if len(os.fsencode(scratch)) > _LONGEST_FOLDER:
        scratch.rmdir()
        raise StartupError(f"The temporary folder's path is too long for a Unix socket: {scratch.parent}")
    arguments = engine_arguments(settings, scratch=scratch)
    return VllmEngine(arguments, model, declared=rates, calibration=settings.calibration, scratch=scratch)


def prepare_environment(settings: WorkerSettings) -> None:
    """What vLLM takes from the environment only. What the operator has set stays."""
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        # On a CPU this lets the model run in the engine core's process: one process and its imports less.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # One core stays for this process: threads that wait for each other at every layer must not wait for it as well.
        "OMP_NUM_THREADS": str(settings.cpu_threads or max(1, len(os.sched_getaffinity(0)) - 1)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def engine_arguments(settings: WorkerSettings, *, scratch: Path) -> Any:
    """VLLM's AsyncEngineArgs; its sockets are in the folder `scratch`."""
    from vllm.config import KVEventsConfig, StructuredOutputsConfig  # noqa: PLC0415
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415

    from services.worker.adapters.vllm.lora import lora_arguments  # noqa: PLC0415
    from services.worker.adapters.vllm.pooling import pooling_arguments  # noqa: PLC0415

    on_cpu = current_platform.is_cpu()
    if on_cpu and settings.block_size % 32:
        raise StartupError(f"The block size must be a multiple of 32 on a CPU; it is {settings.block_size}.")
    arguments = AsyncEngineArgs(
        model=str(model_folder(settings.model_path)),
        served_model_name=settings.model,
        load_format=settings.load_format,
        tensor_parallel_size=settings.tensor_parallel,
        dtype=_dtype(settings, on_cpu=on_cpu),
        max_model_len=settings.context_tokens,
        block_size=settings.block_size,
        num_gpu_blocks_override=settings.kv_blocks or None,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enforce_eager=settings.enforce_eager,
        enable_prefix_caching=True,
        scheduling_policy="priority",
        distributed_executor_backend="uni" if on_cpu else None,
        worker_extension_cls="services.worker.adapters.vllm.child.EngineChild",
        disable_log_stats=True,
        # Left to itself vLLM takes the backend that an earlier request took, and so refuses by chance.
        structured_outputs_config=StructuredOutputsConfig(backend="xgrammar"),
        # Tells with the statistics of each step what was in it.
        enable_logging_iteration_details=True,
        kv_events_config=KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=f"ipc://{scratch}/kv-events",
            replay_endpoint=f"ipc://{scratch}/kv-replay",
        ),
        **lora_arguments(max_adapters=settings.max_adapters, max_rank=settings.max_adapter_rank),
    )
    return pooling_arguments(arguments) if settings.task == "embed" else arguments


def _dtype(settings: WorkerSettings, *, on_cpu: bool) -> str:
    if settings.dtype != "auto" or not on_cpu:
        return settings.dtype
    import torch  # noqa: PLC0415

    # Without instructions for bfloat16 a CPU emulates it, several times slower than float32.
    return "auto" if torch.cpu._is_avx512_bf16_supported() else "float32"  # noqa: SLF001
