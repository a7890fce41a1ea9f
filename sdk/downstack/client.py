"""The synchronous client: `Client.connect(target, api_key=...)`, then `generate`, `models`, `documents`, `ledger`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from downstack.admin.v1 import admin_pb2, admin_pb2_grpc
from downstack.answers import Answer
from downstack.connection import Dial, Endpoints, required
from downstack.errors import from_rpc
from downstack.inference.v1 import inference_pb2, inference_pb2_grpc
from downstack.requests import Conversation, Options, generation_spec
from downstack.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc
from downstack.scheduler.v1 import ledger_pb2, ledger_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from downstack.types.v1 import stream_pb2

T = TypeVar("T")


class Connection:
    """One channel to one service, with the caller's key and deadline on every call."""

    def __init__(self, target: str, dial: Dial) -> None:
        self.target = target
        self._dial = dial
        if dial.tls:
            self.channel = grpc.secure_channel(target, dial.tls, options=dial.options())
        else:
            self.channel = grpc.insecure_channel(target, options=dial.options())

    def call(self, kind: type[T], method: Callable[..., Any], request: Any, *, timeout_s: float | None = None) -> T:
        """The method's answer, which is of `kind`; raises ApiError."""
        try:
            response = method(request, timeout=timeout_s or self._dial.timeout_s, metadata=self._dial.metadata())
        except grpc.RpcError as error:
            raise from_rpc(error, target=self.target) from None
        assert isinstance(response, kind)
        return response

    def stream(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        """The messages of a stream without an end; raises ApiError."""
        call = method(request, metadata=self._dial.metadata())
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc(error, target=self.target) from None
        finally:
            call.cancel()

    def close(self) -> None:
        self.channel.close()


class Generation(Answer):
    """An answer that streams: iterate over it for the deltas; usage, cost and the rest are set when it ends."""

    def __init__(self, call: Any, target: str) -> None:
        super().__init__()
        self._call = call
        self._target = target

    def __iter__(self) -> Iterator[stream_pb2.Delta]:
        try:
            for frame in self._call:
                delta = self.apply(frame)
                if delta is not None:
                    yield delta
        except grpc.RpcError as error:
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

    def create_collection(self, name: str, *, private: bool = False) -> retrieval_pb2.Collection:
        """The new collection, or the existing one of that name."""
        request = retrieval_pb2.CreateCollectionRequest(name=name, private=private)
        return self._connection.call(
            retrieval_pb2.CreateCollectionResponse, self._stub.CreateCollection, request
        ).collection

    def collections(self) -> list[retrieval_pb2.Collection]:
        """All collections that the caller may read."""
        return _pages(
            self._connection, self._stub.ListCollections, retrieval_pb2.ListCollectionsRequest(), "collections"
        )

    def ingest(self, collection: str, documents: Iterable[retrieval_pb2.DocumentInput]) -> retrieval_pb2.IngestResponse:
        """Store documents in an existing collection; all are searchable when it returns."""

        def messages() -> Iterator[retrieval_pb2.IngestRequest]:
            yield retrieval_pb2.IngestRequest(collection=collection)
            for document in documents:
                yield retrieval_pb2.IngestRequest(document=document)

        return self._connection.call(retrieval_pb2.IngestResponse, self._stub.Ingest, messages())

    def search(self, request: retrieval_pb2.SearchRequest) -> Sequence[retrieval_pb2.Hit]:
        """Passages, best first."""
        return self._connection.call(retrieval_pb2.SearchResponse, self._stub.Search, request).hits

    def delete(self, collection: str, document_ids: Sequence[str]) -> int:
        """Delete documents; returns how many existed."""
        request = retrieval_pb2.DeleteDocumentsRequest(collection=collection, document_ids=document_ids)
        return self._connection.call(retrieval_pb2.DeleteDocumentsResponse, self._stub.DeleteDocuments, request).deleted


class Ledger:
    """What was used and what it cost, and what may be spent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = ledger_pb2_grpc.LedgerServiceStub(connection.channel)

    def totals(self, request: ledger_pb2.GetUsageRequest) -> Sequence[ledger_pb2.UsageTotal]:
        """Totals, sorted by group."""
        return self._connection.call(ledger_pb2.GetUsageResponse, self._stub.GetUsage, request).totals

    def rows(self, request: ledger_pb2.ListUsageRequest) -> Sequence[ledger_pb2.UsageRow]:
        """One page of rows, newest first."""
        return self._connection.call(ledger_pb2.ListUsageResponse, self._stub.ListUsage, request).rows

    def budgets(self, tenant_id: str = "") -> list[ledger_pb2.BudgetStatus]:
        """The caller's budgets and what is spent of them; with the scope `admin`, a tenant's or all."""
        request = ledger_pb2.ListBudgetsRequest(tenant_id=tenant_id)
        return _pages(self._connection, self._stub.ListBudgets, request, "budgets")

    def set_budget(self, request: ledger_pb2.SetBudgetRequest) -> ledger_pb2.BudgetStatus:
        """The budget in force. The key needs the `admin` scope."""
        return self._connection.call(ledger_pb2.SetBudgetResponse, self._stub.SetBudget, request).status

    def remove_budget(self, request: ledger_pb2.RemoveBudgetRequest) -> bool:
        """Lift a budget; False where there is none. The key needs the `admin` scope."""
        return self._connection.call(ledger_pb2.RemoveBudgetResponse, self._stub.RemoveBudget, request).removed


class Fleet:
    """The workers and what waits for them. The key needs the `usage` or the `admin` scope."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = scheduler_pb2_grpc.SchedulerServiceStub(connection.channel)

    def now(self) -> scheduler_pb2.Fleet:
        """The fleet as it is."""
        request = scheduler_pb2.DescribeFleetRequest()
        return self._connection.call(scheduler_pb2.DescribeFleetResponse, self._stub.DescribeFleet, request).fleet

    def watch(self, *, interval_s: float = 1.0) -> Iterator[scheduler_pb2.Fleet]:
        """The fleet at every change, with at least `interval_s` between two views, for ever."""
        request = scheduler_pb2.WatchFleetRequest()
        request.interval.FromMilliseconds(round(interval_s * 1000))
        return (response.fleet for response in self._connection.stream(self._stub.WatchFleet, request))


class Admin:
    """Tenants and keys. The key needs the `admin` scope."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = admin_pb2_grpc.AdminServiceStub(connection.channel)

    def create_tenant(self, name: str) -> admin_pb2.Tenant:
        """The new tenant, or the existing one of that name."""
        return self._connection.call(
            admin_pb2.CreateTenantResponse, self._stub.CreateTenant, admin_pb2.CreateTenantRequest(name=name)
        ).tenant

    def tenants(self) -> list[admin_pb2.Tenant]:
        return _pages(self._connection, self._stub.ListTenants, admin_pb2.ListTenantsRequest(), "tenants")

    def create_key(self, request: admin_pb2.CreateApiKeyRequest) -> admin_pb2.CreateApiKeyResponse:
        """The new key with its secret, which is shown nowhere else."""
        return self._connection.call(admin_pb2.CreateApiKeyResponse, self._stub.CreateApiKey, request)

    def keys(self, tenant: str) -> list[admin_pb2.ApiKey]:
        return _pages(self._connection, self._stub.ListApiKeys, admin_pb2.ListApiKeysRequest(tenant=tenant), "keys")

    def revoke_key(self, key_id: str) -> admin_pb2.ApiKey:
        return self._connection.call(
            admin_pb2.RevokeApiKeyResponse, self._stub.RevokeApiKey, admin_pb2.RevokeApiKeyRequest(key_id=key_id)
        ).key


class Client:
    """A connection to Downstack. Thread-safe; close it, or use it in a `with`."""

    def __init__(self, endpoints: Endpoints, dial: Dial) -> None:
        self._endpoints = endpoints
        self._dial = dial
        self._opened: list[Connection] = []
        self._router = self._open(endpoints.router)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._router.channel)

    @classmethod
    def connect(cls, target: str, *, api_key: str, retriever: str = "", scheduler: str = "", **dial: Any) -> Self:
        """Connect to the router at `target` (host:port); nothing is sent before the first call.

        Args:
            target: The router.
            api_key: The caller's key.
            retriever: Where `documents` goes.
            scheduler: Where `ledger` goes.
            dial: `tls`, `timeout_s`, `keepalive_s` and `max_message_bytes` of connection.Dial.
        """
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

    @cached_property
    def fleet(self) -> Fleet:
        """The workers, at the scheduler."""
        return Fleet(self._open(required(self._endpoints.scheduler, part="scheduler")))

    @cached_property
    def admin(self) -> Admin:
        """Tenants and keys, at the router."""
        return Admin(self._router)

    def generate(self, conversation: Conversation | None = None, **options: Unpack[Options]) -> Generation:
        """Stream an answer. Errors are raised while iterating."""
        request = inference_pb2.GenerateRequest(spec=generation_spec(conversation, options))
        timeout_s = options.get("timeout_s", self._dial.timeout_s)
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._dial.metadata())
        return Generation(call, self._router.target)

    def generate_once(self, conversation: Conversation | None = None, **options: Unpack[Options]) -> Answer:
        """A whole answer."""
        request = inference_pb2.GenerateOnceRequest(spec=generation_spec(conversation, options))
        return Answer.whole(
            self._router.call(
                inference_pb2.GenerateOnceResponse, self._stub.GenerateOnce, request, timeout_s=options.get("timeout_s")
            )
        )

    def count_tokens(
        self, conversation: Conversation | None = None, **options: Unpack[Options]
    ) -> inference_pb2.CountTokensResponse:
        """The prompt's length as the model sees it, without running it."""
        request = inference_pb2.CountTokensRequest(spec=generation_spec(conversation, options))
        return self._router.call(
            inference_pb2.CountTokensResponse, self._stub.CountTokens, request, timeout_s=options.get("timeout_s")
        )

    def models(self) -> Sequence[inference_pb2.Model]:
        """The models that the caller may use, sorted by name."""
        return self._router.call(
            inference_pb2.ListModelsResponse, self._stub.ListModels, inference_pb2.ListModelsRequest()
        ).models

    def explain(self, request_id: str) -> inference_pb2.ExplainRequestResponse:
        """The decision record of a request, and what was delivered and billed."""
        request = inference_pb2.ExplainRequestRequest(request_id=request_id)
        return self._router.call(inference_pb2.ExplainRequestResponse, self._stub.ExplainRequest, request)

    def record_events(self, events: Sequence[inference_pb2.CallerEvent]) -> int:
        """Append the caller's own events to the audit stream; they are durable when it returns."""
        request = inference_pb2.RecordEventsRequest(events=events)
        return self._router.call(inference_pb2.RecordEventsResponse, self._stub.RecordEvents, request).recorded

    def close(self) -> None:
        for connection in self._opened:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pages(connection: Connection, method: Callable[..., Any], request: Any, items: str) -> list[Any]:
    found: list[Any] = []
    while True:
        page: Any = connection.call(object, method, request)
        found.extend(getattr(page, items))
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
