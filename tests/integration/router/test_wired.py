"""The router as it is wired for production, on a real PostgreSQL, while Kafka is away."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from downstack.admin.v1 import admin_pb2 as admin_pb
from downstack.admin.v1.admin_pb2_grpc import AdminServiceStub
from downstack.events.v1 import events_pb2 as events_pb
from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.inference.v1.inference_pb2_grpc import InferenceServiceStub
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import SecretStr

from services.kit.errors import Reason
from services.kit.events.journal import Journal
from services.kit.server import serving
from services.router.adapters.fakes.scheduler import FakeScheduler
from services.router.adapters.fakes.worker import FakeWorker
from services.router.wiring import wire
from tests.component.router.world import SECRET, bearer, refused, router_settings, running, served, spec, worker_view
from tests.conftest import MakeDatabase

OPERATOR = "an operator's key of the tests"


@pytest.fixture
async def channel(tmp_path: Path, make_database: MakeDatabase) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a wired router over one fake worker."""
    database = await make_database()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        scheduler, worker = FakeScheduler(SECRET.encode()), FakeWorker(SECRET.encode())
        await scheduler.add_worker(worker_view("worker-0", await enter(served(worker.parts()))))
        settings = router_settings(
            tmp_path,
            scheduler=await enter(served(scheduler.parts())),
            postgres_dsn=SecretStr(database.app_dsn),
            postgres_owner_dsn=SecretStr(database.owner_dsn),
            bootstrap_admin_key=SecretStr(OPERATOR),
            key_cache_s=0,
        )
        parts = await enter(wire(settings))
        await enter(running(parts))
        server = await enter(serving(parts, settings))
        yield await enter(grpc.aio.insecure_channel(server.address))


async def make_key(admin: Any, **fields: Any) -> admin_pb.CreateApiKeyResponse:
    await admin.CreateTenant(admin_pb.CreateTenantRequest(name="acme"), metadata=bearer(OPERATOR))
    request = admin_pb.CreateApiKeyRequest(**({"tenant": "acme", "name": "laptop"} | fields))
    return await admin.CreateApiKey(request, metadata=bearer(OPERATOR))


async def ask(channel: grpc.aio.Channel, key: str) -> inference_pb.GenerateOnceResponse:
    request = inference_pb.GenerateOnceRequest(spec=spec())
    return await InferenceServiceStub(channel).GenerateOnce(request, metadata=bearer(key), timeout=20)


async def test_from_the_operators_key_to_an_answer(channel: grpc.aio.Channel) -> None:
    """A tenant and a key are made, the key opens, and it is listed without its secret."""
    admin = AdminServiceStub(channel)
    made = await make_key(admin, principal="ann", groups=["staff"])
    assert (await ask(channel, made.secret)).choices[0].text == "one two three"
    tenants = await admin.ListTenants(admin_pb.ListTenantsRequest(), metadata=bearer(OPERATOR))
    assert [tenant.name for tenant in tenants.tenants] == ["acme"]
    listed = await admin.ListApiKeys(admin_pb.ListApiKeysRequest(tenant="acme"), metadata=bearer(OPERATOR))
    assert [(key.key_id, key.principal, list(key.groups)) for key in listed.keys] == [
        (made.key.key_id, "ann", ["staff"])
    ]
    assert "admin" not in listed.keys[0].scopes
    assert made.secret not in str(listed)


async def test_a_revoked_key_is_useless(channel: grpc.aio.Channel) -> None:
    """From then on it is refused, and revoking again changes nothing."""
    admin = AdminServiceStub(channel)
    made = await make_key(admin)
    for _ in range(2):
        response = await admin.RevokeApiKey(
            admin_pb.RevokeApiKeyRequest(key_id=made.key.key_id), metadata=bearer(OPERATOR)
        )
        assert response.key.HasField("revoked_at")
    with refused() as told:
        await ask(channel, made.secret)
    assert told[0].reason == Reason.AUTH_REVOKED


async def test_a_tenants_key_does_not_administer(channel: grpc.aio.Channel) -> None:
    """Without the scope `admin` there is no way in."""
    admin = AdminServiceStub(channel)
    made = await make_key(admin)
    with refused() as told:
        await admin.CreateTenant(admin_pb.CreateTenantRequest(name="mine"), metadata=bearer(made.secret))
    assert told[0].reason == Reason.ACTION_NOT_ALLOWED


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tenant": "nobody"}, Reason.TENANT_NOT_FOUND),
        ({"scopes": ["everything"]}, Reason.PARAM_OUT_OF_RANGE),
        ({"expires_at": Timestamp(seconds=1)}, Reason.PARAM_OUT_OF_RANGE),
        ({"expires_at": Timestamp(seconds=10**15)}, Reason.PARAM_OUT_OF_RANGE),
    ],
)
async def test_keys_that_cannot_be(channel: grpc.aio.Channel, fields: dict[str, Any], reason: Reason) -> None:
    """Each mistake has its reason."""
    with refused() as told:
        await make_key(AdminServiceStub(channel), **fields)
    assert told[0].reason == reason


async def test_every_change_leaves_a_record(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    """Who did what to what; reading leaves none."""
    admin = AdminServiceStub(channel)
    made = await make_key(admin)
    await admin.ListTenants(admin_pb.ListTenantsRequest(), metadata=bearer(OPERATOR))
    await admin.RevokeApiKey(admin_pb.RevokeApiKeyRequest(key_id=made.key.key_id), metadata=bearer(OPERATOR))
    entries = Journal(tmp_path / "outbox").read(100)
    facts = [events_pb.AuditRecorded.FromString(entry.event.payload) for entry in entries]
    resource = f"tenant:acme/key:{made.key.key_id}"
    assert [(fact.administered.action, fact.administered.resource, fact.key_id) for fact in facts] == [
        ("tenant.create", "tenant:acme", "bootstrap"),
        ("key.create", resource, "bootstrap"),
        ("key.revoke", resource, "bootstrap"),
    ]
