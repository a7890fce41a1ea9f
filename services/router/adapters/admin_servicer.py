"""Tenants and keys over gRPC."""

from datetime import UTC, datetime
from typing import Any

from downstack.admin.v1 import admin_pb2 as admin_pb
from downstack.admin.v1.admin_pb2_grpc import AdminServiceServicer
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.accounts.store import ApiKey, Tenant
from services.kit.errors import DownstackError, FieldViolation, Reason
from services.kit.identity import Access, current_identity
from services.router.app.administration import Administration

SERVICE = "downstack.admin.v1.AdminService"
ACCESS = {
    f"/{SERVICE}/{method}": Access.scope("admin")
    for method in ("CreateTenant", "ListTenants", "CreateApiKey", "ListApiKeys", "RevokeApiKey")
}


class AdminServicer(AdminServiceServicer):
    """Turns messages into the account store's types and back; decides nothing."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def CreateTenant(  # noqa: N802
        self, request: admin_pb.CreateTenantRequest, _context: Any
    ) -> admin_pb.CreateTenantResponse:
        tenant = await self._administration.create_tenant(current_identity(), request.name)
        return admin_pb.CreateTenantResponse(tenant=_tenant_to(tenant))

    async def ListTenants(  # noqa: N802
        self, request: admin_pb.ListTenantsRequest, _context: Any
    ) -> admin_pb.ListTenantsResponse:
        page = await self._administration.list_tenants(page_size=request.page_size, page_token=request.page_token)
        return admin_pb.ListTenantsResponse(
            tenants=[_tenant_to(tenant) for tenant in page.items], next_page_token=page.next_page_token
        )

    async def CreateApiKey(  # noqa: N802
        self, request: admin_pb.CreateApiKeyRequest, _context: Any
    ) -> admin_pb.CreateApiKeyResponse:
        new = await self._administration.create_key(
            current_identity(),
            tenant=request.tenant,
            name=request.name,
            principal=request.principal,
            groups=tuple(request.groups),
            scopes=tuple(request.scopes),
            expires_at=_moment_of(request.expires_at) if request.HasField("expires_at") else None,
        )
        return admin_pb.CreateApiKeyResponse(key=_key_to(new.key), secret=new.secret)

    async def ListApiKeys(  # noqa: N802
        self, request: admin_pb.ListApiKeysRequest, _context: Any
    ) -> admin_pb.ListApiKeysResponse:
        page = await self._administration.list_keys(
            request.tenant, page_size=request.page_size, page_token=request.page_token
        )
        return admin_pb.ListApiKeysResponse(
            keys=[_key_to(key) for key in page.items], next_page_token=page.next_page_token
        )

    async def RevokeApiKey(  # noqa: N802
        self, request: admin_pb.RevokeApiKeyRequest, _context: Any
    ) -> admin_pb.RevokeApiKeyResponse:
        key = await self._administration.revoke_key(current_identity(), request.key_id)
        return admin_pb.RevokeApiKeyResponse(key=_key_to(key))


def _tenant_to(tenant: Tenant) -> admin_pb.Tenant:
    return admin_pb.Tenant(tenant_id=tenant.tenant_id, name=tenant.name, created_at=_timestamp_to(tenant.created_at))


def _key_to(key: ApiKey) -> admin_pb.ApiKey:
    return admin_pb.ApiKey(
        key_id=key.key_id,
        tenant=key.tenant,
        name=key.name,
        principal=key.principal,
        groups=key.groups,
        scopes=sorted(key.scopes),
        created_at=_timestamp_to(key.created_at),
        expires_at=_timestamp_to(key.expires_at),
        revoked_at=_timestamp_to(key.revoked_at),
    )


def _timestamp_to(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _moment_of(timestamp: Timestamp) -> datetime:
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        violation = FieldViolation("expires_at", "must be between the years 1 and 9999")
        raise DownstackError(
            Reason.PARAM_OUT_OF_RANGE, f"{violation.field} {violation.description}", violations=(violation,)
        ) from None
