"""The asyncio client: as `downstack.client`, with `await` and `async for`."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio

from downstack.answers import Answer
from downstack.connection import Dial, Endpoints, required
from downstack.errors import from_rpc
from downstack.inference.v1 import inference_pb2, inference_pb2_grpc
from downstack.requests import Conversation, Options, generation_spec
from downstack.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc
from downstack.scheduler.v1 import ledger_pb2, ledger_pb2_grpc
from downstack.types.v1 import stream_pb2

T = TypeVar("T")


class Connection:
    """One channel to one service, with the caller's key and deadline on every call."""

    def __init__(self, target: str, dial: Dial) -> None:
        self.target = target
        self._dial = dial
        if dial.tls:
            self.channel = grpc.aio.secure_channel(target, dial.tls, options=dial.options())
        else:
            self.channel = grpc.aio.insecure_channel(target, options=dial.options())

    async def call(
        self, kind: type[T], method: Callable[..., Any], request: Any, *, timeout_s: float | None = None
    ) -> T:
        """The method's answer, which is of `kind`; raises ApiError."""
        try:
            response = await method(request, timeout=timeout_s or self._dial.timeout_s, metadata=self._dial.metadata())
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, target=self.target) from None
        assert isinstance(response, kind)
        return response


class Generation(Answer):
    """An answer that streams: `async for` the deltas; usage, cost and the rest are set when it ends."""

    def __init__(self, call: Any, target: str) -> None:
        super().__init__()
        self._call = call
        self._target = target

    async def __aiter__(self) -> AsyncIterator[stream_pb2.Delta]:
        try:
            async for frame in self._call:
                delta = self.apply(frame)
                if delta is not None:
                    yield delta
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, target=self._target, request_id=self.request_id) from None
        finally:
            self._call.cancel()
        if not self.finished:
            raise self.broken("it ended without its last frame")

    def cancel(self) -> None:
        """Stop the answer; the worker stops too."""
        self._call.cancel()


class Documents:
    """Collections, ingest and search."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = retrieval_pb2_grpc.RetrievalServiceStub(connection.channel)

    async def create_collection(self, name: str, *, private: bool = False) -> retrieval_pb2.Collection:
        """The new collection, or the existing one of that name."""
        request = retrieval_pb2.CreateCollectionRequest(name=name, private=private)
        response = await self._connection.call(
            retrieval_pb2.CreateCollectionResponse, self._stub.CreateCollection, request
        )
        return response.collection

    async def ingest(
        self, collection: str, documents: Iterable[retrieval_pb2.DocumentInput]
    ) -> retrieval_pb2.IngestResponse:
        """Store documents in an existing collection; all are searchable when it returns."""

        async def messages() -> AsyncIterator[retrieval_pb2.IngestRequest]:
            yield retrieval_pb2.IngestRequest(collection=collection)
            for document in documents:
                yield retrieval_pb2.IngestRequest(document=document)

        return await self._connection.call(retrieval_pb2.IngestResponse, self._stub.Ingest, messages())

    async def search(self, request: retrieval_pb2.SearchRequest) -> Sequence[retrieval_pb2.Hit]:
        """Passages, best first."""
        response = await self._connection.call(retrieval_pb2.SearchResponse, self._stub.Search, request)
        return response.hits


class Ledger:
    """What was used and what it cost, and what may be spent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = ledger_pb2_grpc.LedgerServiceStub(connection.channel)

    async def totals(self, request: ledger_pb2.GetUsageRequest) -> Sequence[ledger_pb2.UsageTotal]:
        """Totals, sorted by group."""
        response = await self._connection.call(ledger_pb2.GetUsageResponse, self._stub.GetUsage, request)
        return response.totals

    async def rows(self, request: ledger_pb2.ListUsageRequest) -> Sequence[ledger_pb2.UsageRow]:
        """One page of rows, newest first."""
        response = await self._connection.call(ledger_pb2.ListUsageResponse, self._stub.ListUsage, request)
        return response.rows

    async def budgets(self, request: ledger_pb2.ListBudgetsRequest) -> Sequence[ledger_pb2.BudgetStatus]:
        """One page of budgets and what is spent of them: the caller's; with the scope `admin`, a tenant's or all."""
        response = await self._connection.call(ledger_pb2.ListBudgetsResponse, self._stub.ListBudgets, request)
        return response.budgets

    async def set_budget(self, request: ledger_pb2.SetBudgetRequest) -> ledger_pb2.BudgetStatus:
        """The budget in force. The key needs the `admin` scope."""
        response = await self._connection.call(ledger_pb2.SetBudgetResponse, self._stub.SetBudget, request)
        return response.status

    async def remove_budget(self, request: ledger_pb2.RemoveBudgetRequest) -> bool:
        """Lift a budget; False where there is none. The key needs the `admin` scope."""
        response = await self._connection.call(ledger_pb2.RemoveBudgetResponse, self._stub.RemoveBudget, request)
        return response.removed


class Client:
    """A connection to Downstack, for one event loop. Close it, or use it in an `async with`."""

    def __init__(self, endpoints: Endpoints, dial: Dial) -> None:
        self._endpoints = endpoints
        self._dial = dial
        self._opened: list[Connection] = []
        self._router = self._open(endpoints.router)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._router.channel)

    @classmethod
    def connect(cls, target: str, *, api_key: str, retriever: str = "", scheduler: str = "", **dial: Any) -> Self:
        """As `downstack.client.Client.connect`; nothing is sent before the first call."""
        endpoints = Endpoints(router=target, retriever=retriever, scheduler=scheduler)
        return cls(endpoints, Dial(api_key=api_key, **dial))

    def _open(self, target: str) -> Connection:
        connection = Connection(target, self._dial)
        self._opened.append(connection)
        return connection

    @cached_property
    def documents(self) -> Documents:
        """The retriever."""
        return Documents(self._open(required(self._endpoints.retriever, part="retriever")))

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, at the scheduler."""
        return Ledger(self._open(required(self._endpoints.scheduler, part="scheduler")))

    def generate(self, conversation: Conversation | None = None, **options: Unpack[Options]) -> Generation:
        """Stream an answer. Errors are raised while iterating."""
        request = inference_pb2.GenerateRequest(spec=generation_spec(conversation, options))
        timeout_s = options.get("timeout_s", self._dial.timeout_s)
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._dial.metadata())
        return Generation(call, self._router.target)

    async def generate_once(self, conversation: Conversation | None = None, **options: Unpack[Options]) -> Answer:
        """A whole answer."""
        request = inference_pb2.GenerateOnceRequest(spec=generation_spec(conversation, options))
        kind, method, timeout_s = inference_pb2.GenerateOnceResponse, self._stub.GenerateOnce, options.get("timeout_s")
        return Answer.whole(await self._router.call(kind, method, request, timeout_s=timeout_s))

    async def count_tokens(
        self, conversation: Conversation | None = None, **options: Unpack[Options]
    ) -> inference_pb2.CountTokensResponse:
        """The prompt's length as the model sees it, without running it."""
        request = inference_pb2.CountTokensRequest(spec=generation_spec(conversation, options))
        kind, method, timeout_s = inference_pb2.CountTokensResponse, self._stub.CountTokens, options.get("timeout_s")
        return await self._router.call(kind, method, request, timeout_s=timeout_s)

    async def models(self) -> Sequence[inference_pb2.Model]:
        """The models that the caller may use, sorted by name."""
        request = inference_pb2.ListModelsRequest()
        response = await self._router.call(inference_pb2.ListModelsResponse, self._stub.ListModels, request)
        return response.models

    async def explain(self, request_id: str) -> inference_pb2.ExplainRequestResponse:
        """The decision record of a request, and what was delivered and billed."""
        request = inference_pb2.ExplainRequestRequest(request_id=request_id)
        return await self._router.call(inference_pb2.ExplainRequestResponse, self._stub.ExplainRequest, request)

    async def close(self) -> None:
        for connection in self._opened:
            await connection.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
