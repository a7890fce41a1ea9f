"""A remote server behind the engine's port: this worker decides, reports and accounts, the server computes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio
import structlog

from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason, StartupError
from services.kit.models import Tokenizer
from services.worker.adapters.remote.answer import AnswerReader
from services.worker.adapters.remote.blocks import RemoteBlocks
from services.worker.adapters.remote.errors import request_error
from services.worker.adapters.remote.load import RemoteLoad
from services.worker.adapters.remote.request import generate_request
from services.worker.adapters.remote.server import Description, Metadata, RemoteServer
from services.worker.domain.adapters import Adapter
from services.worker.domain.mirror import Cleared, KvChange
from services.worker.domain.rates import Rates
from services.worker.domain.sampling import Sampling
from services.worker.ports import EngineOutput, EngineSpec, EngineStats, Vector

_log = structlog.get_logger()
_POLL_S = 0.5
_RESUBSCRIBE_S = 0.5


@dataclass(frozen=True)
class RemoteSettings:
    """What is fronted, and what is assumed where the server does not say.

    Attributes:
        target: HOST:PORT.
        wait_s: How long a start waits for a server that is not there or not healthy yet.
        metadata: What each call carries.
    """

    target: str
    wait_s: float
    metadata: Callable[[], Metadata]
    model: str
    context_tokens: int
    block_size: int
    kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    rates: Rates


class RemoteEngine:
    """One connection. Its pulse is the server's own word that it is well; when that stops, the worker makes a new one.

    A subscription to KV events that breaks is renewed here, and begins from empty.
    """

    def __init__(self, settings: RemoteSettings, tokenizer: Tokenizer, *, clock: Clock) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._load = RemoteLoad(clock, settings.rates)
        self._server: RemoteServer | None = None
        self._spec: EngineSpec | None = None
        self._subscription: Any = None
        self._watch: asyncio.Task[None] | None = None
        self._calls: dict[str, Any] = {}
        self._aborted: set[str] = set()

    @property
    def spec(self) -> EngineSpec:
        if self._spec is None:
            raise DownstackError(Reason.ENGINE_DEAD, "The engine has not started yet.", retry_after_s=5.0)
        return self._spec

    @property
    def dead(self) -> bool:
        """Never: a server that is lost has no pulse."""
        return False

    async def start(self) -> None:
        server = RemoteServer(self._settings.target, metadata=self._settings.metadata)
        self._server = server
        await server.until_healthy(wait_s=self._settings.wait_s)
        try:
            description = await server.describe()
            await self._check_tokenizer(server)
            self._subscription = await server.subscribe()
        except grpc.aio.AioRpcError as error:
            said = error.details() or error.code().name
            raise StartupError(f"The remote server {server.target} cannot be fronted: {said}") from None
        self._spec = self._described(description)
        self._watch = asyncio.create_task(self._poll(server), name="remote server")

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        for call in list(self._calls.values()):
            call.cancel()
        if self._server is not None:
            await self._server.close()

    async def embed(self, _prompts: Sequence[Sequence[int]]) -> Sequence[Vector]:
        raise DownstackError(Reason.METHOD_DISABLED, "A remote engine answers, and makes no embeddings.")

    async def load_adapter(self, adapter: Adapter) -> None:
        message = f"A remote engine's contract has no adapters, such as {adapter.name}."
        raise DownstackError(Reason.METHOD_DISABLED, message)

    async def unload_adapter(self, adapter: Adapter) -> None:
        """None was loaded."""

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        *,
        request_id: str,
        cache_salt: str,
        priority: int,
        adapter: str = "",
    ) -> AsyncGenerator[EngineOutput, None]:
        """The contract has no priorities, so `priority` is lost; and no adapters, so that none was loaded."""
        del priority
        assert not adapter
        assert self._server is not None
        reader = AnswerReader(sampling, self._tokenizer)
        flight = self._load.begin(prompt_tokens=len(prompt_token_ids), answers=sampling.n)
        request = generate_request(prompt_token_ids, sampling, request_id=request_id, cache_salt=cache_salt)
        call = self._calls[request_id] = self._server.generate(request)
        try:
            async for response in call:
                for output in reader.read(response):
                    self._load.note(flight, output)
                    yield output
                if reader.ended:
                    return
            raise _left("The remote server ended the stream early.")
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            if _is_cancelled():
                raise
            if request_id not in self._aborted:
                raise _meant(error, sampling) from None
            for output in reader.abort():
                yield output
        finally:
            call.cancel()
            del self._calls[request_id]
            self._aborted.discard(request_id)
            self._load.end(flight)

    async def abort(self, request_ids: Iterable[str]) -> None:
        """Asks the server first, so that it says how far it came; asked again, leaves without its word."""
        running = [request_id for request_id in request_ids if request_id in self._calls]
        again = [request_id for request_id in running if request_id in self._aborted]
        self._aborted.update(running)
        for request_id in again:
            self._calls[request_id].cancel()
        asked = [request_id for request_id in running if request_id not in again]
        if asked and self._server is not None:
            try:
                await self._server.abort(asked)
            except grpc.aio.AioRpcError:
                for request_id in asked:
                    if request_id in self._calls:
                        self._calls[request_id].cancel()

    async def kv_events(self) -> AsyncGenerator[Sequence[KvChange], None]:
        if self._subscription is None:
            await asyncio.Event().wait()  # nothing will ever come
        while True:
            async for changes in self._subscribed(self._subscription):
                yield changes
            yield [Cleared()]
            self._subscription = await self._resubscribed()

    def stats(self) -> EngineStats:
        return self._load.stats()

    def rates(self) -> Rates:
        return self._load.rates()

    async def changed(self) -> None:
        await self._load.changed.wait()
        self._load.changed.clear()

    async def _subscribed(self, call: Any) -> AsyncGenerator[Sequence[KvChange], None]:
        """The changes that a subscription brings, until it breaks or has lost something."""
        blocks = RemoteBlocks(
            model=self._settings.model,
            tokenizer_revision=self._tokenizer.revision,
            block_size=self.spec.block_size,
        )
        try:
            async for batch in call:
                changes = blocks.translate(batch)
                if changes is None:
                    _log.warning("remote_kv_events_lost", server=self._settings.target)
                    return
                if changes:
                    yield changes
        except grpc.aio.AioRpcError as error:
            _log.warning("remote_kv_subscription_lost", server=self._settings.target, code=error.code().name)
        finally:
            call.cancel()

    async def _resubscribed(self) -> Any:
        assert self._server is not None
        while True:
            await asyncio.sleep(_RESUBSCRIBE_S)
            with suppress(grpc.aio.AioRpcError):
                call = await self._server.subscribe()
                if call is not None:
                    return call

    async def _poll(self, server: RemoteServer) -> None:
        """Asks how the server is, for life."""
        while True:
            try:
                if (await server.health()).healthy:
                    self._load.beat()
                loads = await server.loads()
                if loads is not None:
                    self._load.report(loads)
            except grpc.aio.AioRpcError as error:
                _log.warning("remote_server_silent", server=server.target, code=error.code().name)
            await asyncio.sleep(_POLL_S)

    async def _check_tokenizer(self, server: RemoteServer) -> None:
        theirs = await server.tokenizer_revision()
        if theirs not in (None, self._tokenizer.revision):
            raise StartupError(
                f"The remote server {server.target} has another tokenizer ({theirs}) than this worker"
                f" ({self._tokenizer.revision})."
            )

    def _described(self, description: Description) -> EngineSpec:
        settings, model, server = self._settings, description.model, description.server
        block_size = server.block_size or settings.block_size
        tokens = sum(entry.max_total_num_tokens for entry in description.loads.loads)
        context = min(model.max_context_length or settings.context_tokens, settings.context_tokens)
        max_num_seqs = server.max_num_seqs or settings.max_num_seqs
        return EngineSpec(
            engine="remote",
            engine_version=description.loads.version or server.server_type,
            context_tokens=context,
            vocab_size=min(model.vocab_size or self._tokenizer.vocab_size, self._tokenizer.vocab_size),
            block_size=block_size,
            kv_blocks=tokens // block_size or settings.kv_blocks or -(-context * max_num_seqs // block_size),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            kv_events=self._subscription is not None,
        )


def _is_cancelled() -> bool:
    """Whether this task is cancelled itself, and not only the call that it reads."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _meant(error: BaseException, sampling: Sampling) -> DownstackError:
    if isinstance(error, grpc.aio.AioRpcError):
        return request_error(error, sampling)
    return _left("The connection to the remote server was closed.")


def _left(message: str) -> DownstackError:
    return DownstackError(Reason.ENGINE_DEAD, message, retry_after_s=1.0)
