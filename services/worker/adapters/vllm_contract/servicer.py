"""vllm.grpc.engine.VllmEngine, as far as a worker can honour it."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import grpc.aio
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.smg import common_pb2, vllm_engine_pb2_grpc
from downstack.smg import vllm_engine_pb2 as pb
from downstack.types.v1.chat_pb2 import Priority
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.blocks import root_hash
from services.kit.channel import remaining_s
from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason
from services.kit.identity import Access, Identity, current_identity
from services.kit.ids import new_id
from services.worker.adapters.vllm_contract.answer import Answer
from services.worker.adapters.vllm_contract.asked import Asked, read_request, read_sampling
from services.worker.adapters.vllm_contract.blocks import BlockBook, Chain
from services.worker.adapters.vllm_contract.feed import kv_batches
from services.worker.adapters.vllm_contract.model import ModelFiles
from services.worker.adapters.wire import engine_priority
from services.worker.app.lease_run import Work
from services.worker.app.worker import Worker
from services.worker.domain.sampling import check_prompt, check_sampling

NAME = "vllm.grpc.engine.VllmEngine"
ENDLESS = (f"/{NAME}/SubscribeKvEvents",)
_METHODS = (
    "Generate",
    "Embed",
    "HealthCheck",
    "Abort",
    "GetModelInfo",
    "GetServerInfo",
    "GetLoads",
    "GetTokenizer",
    "SubscribeKvEvents",
)
_MEMBERS = Access.any_of(Access.service("router", "worker"), Access.scope("generate"))
_LEASE_LIFE_S = 60.0
_LABEL_CHARACTERS = 64
_MAX_BLOCKS = 200_000
_MAX_SUBSCRIBERS = 64


@dataclass(frozen=True)
class ContractSettings:
    """Who may call, and for whom.

    Attributes:
        access: `service`: whoever carries the assertion of a service, or of a caller with the scope `generate`.
            `open`: everybody who reaches the port.
        tenant_id: Whom requests are accounted to whose caller names no tenant.
    """

    access: Literal["service", "open"]
    tenant_id: str


def contract_access(settings: ContractSettings) -> Mapping[str, Access]:
    """Who may call which method."""
    access = Access.PUBLIC if settings.access == "open" else _MEMBERS
    return {f"/{NAME}/{method}": access for method in _METHODS}


class VllmContractServicer(vllm_engine_pb2_grpc.VllmEngineServicer):
    """Grants leases to callers who have no ticket, and speaks their language."""

    def __init__(self, worker: Worker, model: ModelFiles, *, settings: ContractSettings, clock: Clock) -> None:
        self._worker = worker
        self._model = model
        self._settings = settings
        self._clock = clock
        self._since = clock.monotonic()
        self._book = BlockBook(limit=_MAX_BLOCKS)
        # The running requests by tenant and the caller's name, and those of them that were aborted by it.
        self._leases: dict[tuple[str, str], str] = {}
        self._aborted: set[str] = set()
        self._subscribers = 0

    async def Generate(  # noqa: N802  the contract's name
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Runs a request under a lease that this worker grants itself."""
        caller = self._caller()
        asked = read_request(request, self._model.tokenizer)
        key = (caller.tenant_id, asked.request_id or new_id("req"))
        if key in self._leases:
            raise DownstackError(Reason.PARAM_CONFLICT, "request_id: a request of this name runs already.")
        work = self._work(asked, caller, deadline_s=remaining_s(context))
        lease_id, sampling = work.grant.lease_id, work.sampling
        answer = Answer(
            prompt_tokens=len(work.prompt), max_tokens=sampling.max_tokens, n=sampling.n, stream=asked.stream
        )
        chains = self._chains(work, asked, caller)
        run = self._worker.begin(work)
        self._leases[key] = lease_id
        try:
            async with aclosing(run.frames()) as frames:
                async for frame in frames:
                    if chains and frame.WhichOneof("frame") == "delta":
                        chains[frame.delta.index].extend(frame.delta.token_ids)
                    for response in answer.read(frame):
                        yield response
        except DownstackError as error:
            if error.reason is not Reason.CLIENT_CANCELLED or lease_id not in self._aborted:
                raise
            for response in answer.aborted():
                yield response
        finally:
            del self._leases[key]
            self._aborted.discard(lease_id)

    async def Embed(  # noqa: N802
        self, _request: pb.EmbedRequest, _context: grpc.aio.ServicerContext
    ) -> pb.EmbedResponse:
        """Refused: no engine here makes embeddings."""
        raise DownstackError(Reason.METHOD_DISABLED, "This worker's model makes no embeddings.")

    async def HealthCheck(  # noqa: N802
        self, _request: pb.HealthCheckRequest, _context: grpc.aio.ServicerContext
    ) -> pb.HealthCheckResponse:
        """Whether a lease can begin."""
        try:
            self._worker.check_open()
        except DownstackError as error:
            return pb.HealthCheckResponse(healthy=False, message=error.message)
        return pb.HealthCheckResponse(healthy=True, message="Serving.")

    async def Abort(  # noqa: N802
        self, request: pb.AbortRequest, _context: grpc.aio.ServicerContext
    ) -> pb.AbortResponse:
        """Ends the caller's own requests. Unknown ones are ignored."""
        tenant_id = self._caller().tenant_id
        found = [self._leases.get((tenant_id, request_id)) for request_id in request.request_ids]
        leases = [lease_id for lease_id in found if lease_id is not None]
        self._aborted.update(leases)
        self._worker.cancel(leases)
        return pb.AbortResponse()

    async def GetModelInfo(  # noqa: N802
        self, _request: pb.GetModelInfoRequest, _context: grpc.aio.ServicerContext
    ) -> pb.GetModelInfoResponse:
        """The model."""
        spec, model = self._worker.spec(), self._model
        return pb.GetModelInfoResponse(
            model_path=model.ref,
            is_generation=True,
            max_context_length=spec.context_tokens,
            vocab_size=model.tokenizer.vocab_size,
            served_model_name=spec.model,
            tokenizer_path=model.ref,
            model_type=model.config.get("model_type", ""),
            architectures=model.config.get("architectures", ()),
            eos_token_ids=sorted(model.tokenizer.eos_token_ids),
            max_req_input_len=spec.context_tokens - 1,
        )

    async def GetServerInfo(  # noqa: N802
        self, _request: pb.GetServerInfoRequest, _context: grpc.aio.ServicerContext
    ) -> pb.GetServerInfoResponse:
        """The server."""
        spec, load = self._worker.spec(), self._worker.load()
        return pb.GetServerInfoResponse(
            active_requests=load.running_requests + load.waiting_requests,
            is_paused=self._worker.draining,
            uptime_seconds=self._clock.monotonic() - self._since,
            server_type="vllm-grpc",
            data_parallel_size=1,
            block_size=spec.block_size,
            max_num_seqs=spec.max_num_seqs,
            constrained_decoding_start="first_token",
        )

    async def GetLoads(  # noqa: N802
        self, _request: pb.GetLoadsRequest, _context: grpc.aio.ServicerContext
    ) -> pb.GetLoadsResponse:
        """How busy the engine is."""
        spec, load = self._worker.spec(), self._worker.load()
        tokens, now = spec.kv_blocks * spec.block_size, Timestamp()
        now.FromNanoseconds(round(self._clock.now() * 1e9))
        entry = pb.SchedulerLoad(
            num_running_reqs=load.running_requests,
            num_waiting_reqs=load.waiting_requests,
            num_total_reqs=load.running_requests + load.waiting_requests,
            num_used_tokens=round(load.kv_usage * tokens),
            max_total_num_tokens=tokens,
            token_usage=load.kv_usage,
            cache_hit_rate=load.prefix_hits / load.prefix_queries if load.prefix_queries else 0.0,
            max_running_requests=spec.max_num_seqs,
        )
        version = f"{spec.engine} {spec.engine_version}"
        return pb.GetLoadsResponse(timestamp=now.ToJsonString(), version=version, dp_rank_count=1, loads=[entry])

    async def GetTokenizer(  # noqa: N802
        self, _request: common_pb2.GetTokenizerRequest, _context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[common_pb2.GetTokenizerChunk, None]:
        """The tokenizer's files."""
        for chunk in await asyncio.to_thread(lambda: list(self._model.tokenizer_chunks())):
            yield chunk

    async def SubscribeKvEvents(  # noqa: N802
        self, _request: common_pb2.SubscribeKvEventsRequest, _context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[common_pb2.KvEventBatch, None]:
        """The blocks of the caller's own requests, from a snapshot on; an earlier position is not resumed."""
        caller = self._caller()
        if not self._worker.spec().kv_events:
            raise DownstackError(Reason.METHOD_DISABLED, "This worker's engine does not report its KV cache.")
        if self._subscribers >= _MAX_SUBSCRIBERS:
            raise DownstackError(Reason.STREAM_LIMIT, "Too many callers subscribe to KV events here.")
        self._subscribers += 1
        try:
            async with aclosing(kv_batches(self._worker, self._book, owner=caller.tenant_id)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._subscribers -= 1

    def _caller(self) -> Identity:
        """Whom the request is for."""
        tenant_id = self._settings.tenant_id
        if self._settings.access == "open":
            return Identity(tenant_id, "", (), frozenset(), "")
        identity = current_identity()
        if identity.tenant_id or not tenant_id:
            return identity
        return Identity(tenant_id, identity.principal, identity.groups, identity.scopes, identity.key_id)

    def _work(self, asked: Asked, caller: Identity, *, deadline_s: float | None) -> Work:
        """What is asked, checked as far as that is possible without the engine."""
        if not caller.tenant_id:
            message = "This request names no tenant, and the worker's settings name none for such requests."
            raise DownstackError(Reason.ACTION_NOT_ALLOWED, message)
        self._worker.check_open()
        grant = self._grant(asked, caller)
        bounds = self._worker.bounds(grant)
        check_prompt(asked.prompt, bounds)
        sampling = read_sampling(asked.params, room=bounds.context_tokens - len(asked.prompt))
        grant.max_output_tokens, grant.answers = sampling.max_tokens, sampling.n
        check_sampling(sampling, self._worker.bounds(grant))
        return Work(grant, asked.prompt, sampling, engine_priority(grant), deadline_s)

    def _grant(self, asked: Asked, caller: Identity) -> LeaseGrant:
        worker, now = self._worker, self._clock.now()
        grant = LeaseGrant(
            lease_id=new_id("lse"),
            # Its own, even where a calling worker sends its request's: to the scheduler that would be the same attempt.
            request_id=new_id("req"),
            attempt=1,
            tenant_id=caller.tenant_id,
            key_id=caller.key_id,
            worker_id=worker.worker_id,
            worker_epoch=worker.epoch,
            model=worker.spec().model,
            requested_model=worker.spec().model,
            # Not the tenant's own salt: what the router's requests leave in the cache is not for this door.
            cache_salt=f"{caller.tenant_id}/{asked.salt}",
            prompt_tokens=len(asked.prompt),
            priority=Priority.PRIORITY_STANDARD,
            labels={"contract": NAME, "request": asked.request_id[:_LABEL_CHARACTERS]},
        )
        grant.granted_at.FromNanoseconds(round(now * 1e9))
        grant.expires_at.FromNanoseconds(round((now + _LEASE_LIFE_S) * 1e9))
        return grant

    def _chains(self, work: Work, asked: Asked, caller: Identity) -> list[Chain]:
        """The prompt's blocks become known, and each answer's as they come; none where nobody can hear of them."""
        spec = self._worker.spec()
        if not spec.kv_events:
            return []
        root = root_hash(model=spec.model, tokenizer_revision=spec.tokenizer_revision, cache_salt=work.grant.cache_salt)
        chain = Chain(self._book, root=root, block_size=spec.block_size, owner=caller.tenant_id, salt=asked.salt)
        chain.extend(work.prompt)
        return [chain.fork() for _ in range(work.sampling.n)]
