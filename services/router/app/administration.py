"""Changes tenants and keys, and leaves a record of every change."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

from services.kit.accounts.store import AccountStore, ApiKey, NewKey, Page, Tenant
from services.kit.identity import Identity
from services.router.domain.facts import Administered, Record, Subject
from services.router.ports import AuditPort

Changed = TypeVar("Changed")


class Administration:
    """What AdminService does. A key with the scope `admin` administers the whole installation."""

    def __init__(self, accounts: AccountStore, audit: AuditPort) -> None:
        self._accounts = accounts
        self._audit = audit

    async def create_tenant(self, actor: Identity, name: str) -> Tenant:
        return await self._change(
            actor, "tenant.create", lambda: self._accounts.create_tenant(name), resource=lambda t: f"tenant:{t.name}"
        )

    async def list_tenants(self, *, page_size: int, page_token: str) -> Page[Tenant]:
        return await self._accounts.list_tenants(page_size=page_size, page_token=page_token)

    async def create_key(
        self,
        actor: Identity,
        *,
        tenant: str,
        name: str,
        principal: str,
        groups: Sequence[str],
        scopes: Sequence[str],
        expires_at: datetime | None,
    ) -> NewKey:
        def create() -> Awaitable[NewKey]:
            return self._accounts.create_key(
                tenant, name=name, principal=principal, groups=groups, scopes=scopes, expires_at=expires_at
            )

        return await self._change(actor, "key.create", create, resource=lambda new: _key_name(new.key))

    async def list_keys(self, tenant: str, *, page_size: int, page_token: str) -> Page[ApiKey]:
        return await self._accounts.list_keys(tenant, page_size=page_size, page_token=page_token)

    async def revoke_key(self, actor: Identity, key_id: str) -> ApiKey:
        return await self._change(actor, "key.revoke", lambda: self._accounts.revoke_key(key_id), resource=_key_name)

    async def _change(
        self,
        actor: Identity,
        action: str,
        change: Callable[[], Awaitable[Changed]],
        *,
        resource: Callable[[Changed], str],
    ) -> Changed:
        """Change, then record. What cannot be recorded is not begun."""
        self._audit.check_open()
        changed = await change()
        subject = Subject(tenant_id=actor.tenant_id, principal=actor.principal, key_id=actor.key_id)
        await self._audit.record(Record(subject, Administered(action=action, resource=resource(changed))))
        return changed


def _key_name(key: ApiKey) -> str:
    return f"tenant:{key.tenant}/key:{key.key_id}"
