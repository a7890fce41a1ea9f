"""The commands `keys create|list|revoke`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from downstack.admin.v1 import admin_pb2
from downstack.cli.output import as_dict, console, print_json, print_table
from downstack.cli.session import AdminKeyOption, DataDirOption, JsonOption, TargetOption, Where, administration

keys = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)

TenantOption = Annotated[str, typer.Option("--tenant", help="The tenant's name.")]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="A label for people.")] = "",
    tenant: TenantOption = "default",
    principal: Annotated[str, typer.Option(help="Who acts with it. Default: the key itself.")] = "",
    group: Annotated[list[str] | None, typer.Option(help="A group of the principal; may be repeated.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do; may be repeated. Default: all but admin.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires. Default: never.")] = None,
    target: TargetOption = "",
    admin_key: AdminKeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Create a key, and its tenant where that is new. The key is shown only here."""
    request = admin_pb2.CreateApiKeyRequest(
        tenant=tenant, name=name, principal=principal, groups=group or [], scopes=scope or []
    )
    if days:
        request.expires_at.FromDatetime(datetime.now(UTC) + timedelta(days=days))
    with administration(Where(target=target, api_key=admin_key, data_dir=data_dir)) as client:
        client.admin.create_tenant(tenant)
        created = client.admin.create_key(request)
    if json:
        print_json(as_dict(created))
        return
    console().print(created.secret, markup=False)
    console().print(f"Key {created.key.key_id} of {tenant}. It is shown only here.", style="dim", markup=False)


@keys.command("list")
def list_keys(
    tenant: TenantOption = "default",
    target: TargetOption = "",
    admin_key: AdminKeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """List a tenant's keys, without their secrets."""
    with administration(Where(target=target, api_key=admin_key, data_dir=data_dir)) as client:
        found = client.admin.keys(tenant)
    if json:
        print_json({"keys": [as_dict(key) for key in found]})
        return
    rows = [
        [key.key_id, key.name, key.principal, " ".join(key.scopes), _moment(key.created_at), _state(key)]
        for key in found
    ]
    print_table(["key", "name", "principal", "scopes", "created", "state"], rows)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The public part of the key; see `keys list`.")],
    target: TargetOption = "",
    admin_key: AdminKeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key useless."""
    with administration(Where(target=target, api_key=admin_key, data_dir=data_dir)) as client:
        key = client.admin.revoke_key(key_id)
    if json:
        print_json(as_dict(key))
    else:
        console().print(f"Key {key.key_id} is revoked.", markup=False)


def _state(key: admin_pb2.ApiKey) -> str:
    if key.HasField("revoked_at"):
        return f"revoked {_moment(key.revoked_at)}"
    if key.HasField("expires_at"):
        return f"until {_moment(key.expires_at)}"
    return "valid"


def _moment(at: Timestamp) -> str:
    return at.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M")
