"""Asks the retriever over gRPC."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio
from downstack.retrieval.v1.retrieval_pb2 import PrepareRequest
from downstack.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from services.kit.clock import Clock
from services.kit.identity import Identity, internal_metadata
from services.kit.status import error_from_rpc
from services.router.adapters.wire_answer import passage_of
from services.router.domain.prompt import Passage

if TYPE_CHECKING:
    # The asynchronous stubs exist for the type checker only.
    from downstack.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceAsyncStub


class RetrieverClient:
    """The retriever at one address."""

    def __init__(self, channel: grpc.aio.Channel, *, secret: bytes, clock: Clock) -> None:
        self._stub = cast("RetrievalServiceAsyncStub", RetrievalServiceStub(channel))
        self._secret = secret
        self._clock = clock

    async def prepare(
        self, identity: Identity, *, query: str, collections: Sequence[str], top_k: int | None, timeout_s: float
    ) -> list[Passage]:
        request = PrepareRequest(query=query, collections=collections, top_k=top_k)
        metadata = internal_metadata("router", identity=identity, secret=self._secret, now=self._clock.now())
        try:
            response = await self._stub.Prepare(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return [passage_of(citation) for citation in response.citations]
