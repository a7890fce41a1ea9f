"""downstack.worker.v1.WorkerService."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc.aio
from downstack.worker.v1 import worker_pb2, worker_pb2_grpc

from services.kit.channel import remaining_s
from services.kit.errors import DownstackError, Reason
from services.kit.identity import Access
from services.kit.tickets import verify_ticket
from services.worker.adapters.adapter_files import AdapterFolder
from services.worker.adapters.wire import engine_priority, sampling_of
from services.worker.app.embedding import Embedding
from services.worker.app.lease_run import Work
from services.worker.app.reports import adapter_of
from services.worker.app.worker import Worker
from services.worker.domain.sampling import check_prompt, check_sampling

NAME = "downstack.worker.v1.WorkerService"
_OPERATORS = Access.any_of(Access.service("router", "scheduler", "worker"), Access.scope("admin"))
ACCESS = {
    # The ticket is the permission, whoever carries it.
    f"/{NAME}/Generate": Access.PUBLIC,
    f"/{NAME}/Embed": Access.service("router", "retriever"),
    f"/{NAME}/Abort": _OPERATORS,
    f"/{NAME}/Drain": _OPERATORS,
    f"/{NAME}/GetStatus": _OPERATORS,
    f"/{NAME}/LoadAdapter": _OPERATORS,
    f"/{NAME}/ListAdapters": _OPERATORS,
    f"/{NAME}/UnloadAdapter": _OPERATORS,
}
_NO_ADAPTERS = AdapterFolder()


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Checks what comes in, and hands it to the worker."""

    def __init__(
        self,
        worker: Worker,
        *,
        secret: bytes,
        drain_s: float,
        adapters: AdapterFolder = _NO_ADAPTERS,
        embedding: Embedding | None = None,
    ) -> None:
        self._worker = worker
        self._embedding = embedding
        self._adapters = adapters
        self._secret = secret
        self._drain_s = drain_s

    async def Generate(  # noqa: N802  the contract's name; a generator, as grpc.aio allows
        self, request: worker_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[worker_pb2.GenerateResponse, None]:
        """Runs what the ticket allows."""
        run = self._worker.begin(self._work(request, deadline_s=remaining_s(context)))
        async with aclosing(run.frames()) as frames:
            async for frame in frames:
                yield frame

    async def Embed(  # noqa: N802
        self, request: worker_pb2.EmbedRequest, _context: grpc.aio.ServicerContext
    ) -> worker_pb2.EmbedResponse:
        """Vectors, where the model makes them."""
        if self._embedding is None:
            raise DownstackError(Reason.METHOD_DISABLED, "This worker's model makes answers, and no embeddings.")
        self._worker.check_serving()
        embedded = await self._embedding.embed(request.texts)
        embeddings = [worker_pb2.Embedding(values=vector) for vector in embedded.vectors]
        return worker_pb2.EmbedResponse(embeddings=embeddings, tokens=embedded.tokens, model=self._worker.spec().model)

    async def Abort(  # noqa: N802
        self, request: worker_pb2.AbortRequest, _context: grpc.aio.ServicerContext
    ) -> worker_pb2.AbortResponse:
        """Ends leases."""
        return worker_pb2.AbortResponse(aborted=self._worker.cancel(request.lease_ids))

    async def Drain(  # noqa: N802
        self, request: worker_pb2.DrainRequest, _context: grpc.aio.ServicerContext
    ) -> worker_pb2.DrainResponse:
        """Takes no more leases, and returns when none runs."""
        budget_s = request.budget.ToTimedelta().total_seconds() if request.HasField("budget") else self._drain_s
        return worker_pb2.DrainResponse(aborted=await self._worker.drain(budget_s))

    async def GetStatus(  # noqa: N802
        self, _request: worker_pb2.GetStatusRequest, _context: grpc.aio.ServicerContext
    ) -> worker_pb2.GetStatusResponse:
        """What it is and does."""
        worker = self._worker
        await worker.until_started()
        return worker_pb2.GetStatusResponse(
            worker_id=worker.worker_id,
            epoch=worker.epoch,
            spec=worker.spec(),
            load=worker.load(),
            leases=worker.running_leases(),
            draining=worker.draining,
            kv_blocks_resident=worker.kv_blocks_resident,
        )

    async def LoadAdapter(  # noqa: N802
        self, request: worker_pb2.LoadAdapterRequest, _context: grpc.aio.ServicerContext
    ) -> worker_pb2.LoadAdapterResponse:
        """Reads an adapter's files in a thread, and offers it."""
        await self._worker.until_started()
        folder = self._adapters.find(request.path)
        adapter = await asyncio.to_thread(self._adapters.read, request.name, folder)
        await self._worker.shelf.load(adapter)
        return worker_pb2.LoadAdapterResponse(adapter=adapter_of(adapter))

    async def ListAdapters(  # noqa: N802
        self, _request: worker_pb2.ListAdaptersRequest, _context: grpc.aio.ServicerContext
    ) -> worker_pb2.ListAdaptersResponse:
        """What is held."""
        table = self._worker.shelf.table
        held = [
            worker_pb2.HeldAdapter(adapter=adapter_of(each.adapter), running=each.running, withdrawn=each.withdrawn)
            for each in table
        ]
        return worker_pb2.ListAdaptersResponse(adapters=held, max_adapters=table.most)

    async def UnloadAdapter(  # noqa: N802
        self, request: worker_pb2.UnloadAdapterRequest, _context: grpc.aio.ServicerContext
    ) -> worker_pb2.UnloadAdapterResponse:
        """Withdraws an adapter."""
        return worker_pb2.UnloadAdapterResponse(running=self._worker.shelf.unload(request.name).running)

    def _work(self, request: worker_pb2.GenerateRequest, *, deadline_s: float | None) -> Work:
        """What is asked, checked as far as that is possible without the engine."""
        grant = verify_ticket(request.ticket, secret=self._secret)
        self._worker.check_open()
        bounds = self._worker.bounds(grant)
        prompt = tuple(request.prompt_token_ids)
        check_prompt(prompt, bounds)
        room = min(bounds.max_output_tokens, bounds.context_tokens - len(prompt))
        sampling = sampling_of(request.sampling, max_tokens=room)
        check_sampling(sampling, bounds)
        return Work(grant, prompt, sampling, engine_priority(grant), deadline_s)
