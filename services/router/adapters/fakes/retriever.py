"""A retriever that finds what it was given."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from downstack.retrieval.v1 import retrieval_pb2 as retrieval_pb
from downstack.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceServicer, add_RetrievalServiceServicer_to_server
from downstack.types.v1 import stream_pb2 as stream_pb

from services.kit.clock import SystemClock
from services.kit.errors import DownstackError
from services.kit.identity import Access, AssertionAuthenticator, Identity, current_identity
from services.kit.server import Binding, ServiceParts

_RETRIEVER = "downstack.retrieval.v1.RetrievalService"


@dataclass
class FakeRetriever(RetrievalServiceServicer):
    """The script and the memory of one fake retriever.

    Attributes:
        secret: Checks the assertions.
        citations: What every search finds, best first.
        failure: Raised instead.
        gate: Every search waits for it.
        requests: The Prepare requests, in order.
        callers: Their identities.
    """

    secret: bytes
    citations: Sequence[stream_pb.Citation] = ()
    failure: DownstackError | None = None
    gate: asyncio.Event | None = None
    requests: list[retrieval_pb.PrepareRequest] = field(default_factory=list)
    callers: list[Identity] = field(default_factory=list)

    def parts(self) -> ServiceParts:
        """The service, for the router and for nobody else."""
        return ServiceParts(
            bindings=(Binding(add_RetrievalServiceServicer_to_server, self, _RETRIEVER),),
            access={f"/{_RETRIEVER}/Prepare": Access.service("router")},
            authenticator=AssertionAuthenticator(self.secret, SystemClock()),
        )

    async def Prepare(  # noqa: N802
        self, request: retrieval_pb.PrepareRequest, _context: Any
    ) -> retrieval_pb.PrepareResponse:
        self.requests.append(request)
        self.callers.append(current_identity())
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return retrieval_pb.PrepareResponse(citations=self.citations)
