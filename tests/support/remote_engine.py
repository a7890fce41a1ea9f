"""The remote adapter, and servers of vLLM's contract for it to front."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from downstack.smg.vllm_engine_pb2_grpc import add_VllmEngineServicer_to_server

from services.kit.clock import SystemClock
from services.kit.identity import AssertionAuthenticator, internal_metadata
from services.kit.models import Tokenizer
from services.kit.server import Binding, ServiceParts, serving
from services.kit.settings import ServiceSettings
from services.worker.adapters.remote.engine import RemoteEngine, RemoteSettings
from services.worker.adapters.remote.server import Metadata
from services.worker.adapters.vllm_contract import servicer as contract
from services.worker.adapters.vllm_contract.model import ModelFiles
from services.worker.app.worker import Worker
from services.worker.domain.rates import Rates
from tests.support.worker_process import Process, worker
from tests.support.worker_rig import MODEL, SECRET

TENANT = "0c5b1a52-6a1e-4c2e-9a55-0d1c3c1d9f10"
# Another name than the fronting worker's, because names are local.
INNER_MODEL = "the-server's-own-name"


def asserted() -> Metadata:
    """What a worker sends to a server that trusts its secret."""
    return internal_metadata("worker", identity=None, secret=SECRET, now=SystemClock().now())


def remote_engine(
    target: str, tokenizer: Tokenizer, *, rates: Rates, metadata: Callable[[], Metadata] = asserted, wait_s: float = 60
) -> RemoteEngine:
    """An adapter that has not started."""
    settings = RemoteSettings(
        target=target,
        wait_s=wait_s,
        metadata=metadata,
        model=MODEL,
        context_tokens=512,
        block_size=32,
        kv_blocks=0,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        rates=rates,
    )
    return RemoteEngine(settings, tokenizer, clock=SystemClock())


@asynccontextmanager
async def contract_process(folder: Path, port: int, **settings: object) -> AsyncIterator[Process]:
    """A worker's process that serves the contract with the simulated engine; it serves when the block begins."""
    values = {
        "engine": "sim",
        "model": INNER_MODEL,
        "vllm_contract": "service",
        "vllm_contract_tenant": TENANT,
        "context_tokens": 512,
        "kv_blocks": 64,
        **settings,
    }
    async with worker(folder, port, **values) as process:
        await process.until_serving(30)
        yield process


@asynccontextmanager
async def contract_server(
    inner: Worker, tokenizer: Tokenizer, *, model_path: str, access: str = "service", tenant_id: str = TENANT
) -> AsyncIterator[str]:
    """Serves the contract for a worker of this process; yields the address."""
    clock = SystemClock()
    settings = contract.ContractSettings(access, tenant_id)  # type: ignore[arg-type]
    servicer = contract.VllmContractServicer(
        inner, ModelFiles.read(model_path, tokenizer), settings=settings, clock=clock
    )
    parts = ServiceParts(
        bindings=[Binding(add_VllmEngineServicer_to_server, servicer, contract.NAME)],
        access=contract.contract_access(settings),
        authenticator=AssertionAuthenticator(SECRET, clock),
        endless=contract.ENDLESS,
    )
    server_settings = ServiceSettings(
        listen="127.0.0.1:0", metrics_listen="", service_secret=SECRET.decode(), drain_s=1
    )
    async with serving(parts, server_settings) as server:
        yield server.address
