"""Who sees what: tenants, private collections, grants, and their end."""

import asyncio
import uuid

import pytest
from downstack.retrieval.v1 import retrieval_pb2 as pb

from services.kit.errors import Code, Reason
from services.kit.identity import Identity
from tests.component.retriever.world import OTHER, World, document, person

READ, WRITE = pb.ACCESS_LEVEL_READ, pb.ACCESS_LEVEL_WRITE
BOB = person("bob", groups=["staff"])
STRANGER = person("ann", tenant=OTHER)  # the same name in another tenant


def search(name: str) -> pb.SearchRequest:
    return pb.SearchRequest(query="secret", collections=[name])


CALLS = {
    "Search": search("plans"),
    "GetDocument": pb.GetDocumentRequest(collection="plans", document_id="a"),
    "DeleteDocuments": pb.DeleteDocumentsRequest(collection="plans", document_ids=["a"]),
    "DeleteCollection": pb.DeleteCollectionRequest(name="plans"),
    "GrantAccess": pb.GrantAccessRequest(collection="plans", grant=pb.Grant(grantee="principal:bob", level=WRITE)),
    "RevokeAccess": pb.RevokeAccessRequest(collection="plans", grantee="principal:ann"),
    "ListGrants": pb.ListGrantsRequest(collection="plans"),
}
WRITES = [name for name in CALLS if name not in {"Search", "GetDocument"}]


async def plans(world: World, *, private: bool) -> None:
    await world.create("plans", private=private)
    await world.ingest("plans", document("a", "the secret plan"))


@pytest.mark.parametrize("who", [STRANGER, BOB], ids=["another tenant", "another principal"])
@pytest.mark.parametrize("method", CALLS)
async def test_what_is_not_yours_does_not_exist(world: World, method: str, who: Identity) -> None:
    """The answer is the one for a collection that was never there, word for word."""
    before = await world.refusal(method, CALLS[method], who=who)
    await plans(world, private=True)
    after = await world.refusal(method, CALLS[method], who=who)
    assert (after.code, after.reason) == (Code.NOT_FOUND, Reason.COLLECTION_NOT_FOUND)
    assert (before.reason, before.message, before.metadata) == (after.reason, after.message, after.metadata)
    assert await world.found("secret", "plans") == ["a"]


async def test_ingest_into_what_is_not_yours(world: World) -> None:
    """The same for the stream."""
    await plans(world, private=True)
    for who in (STRANGER, BOB):
        parts = [pb.IngestRequest(collection="plans"), pb.IngestRequest(document=document("b", "mine"))]
        error = await world.refusal("Ingest", iter(parts), who=who)
        assert error.reason is Reason.COLLECTION_NOT_FOUND


async def test_tenants_have_names_of_their_own(world: World) -> None:
    """Two collections of one name and one document id in two tenants have nothing to do with each other."""
    await plans(world, private=False)
    await world.create("plans", who=STRANGER)
    await world.ingest("plans", document("a", "the secret recipe"), who=STRANGER)
    [ours] = await world.search("secret", "plans")
    [theirs] = await world.search("secret", "plans", who=STRANGER)
    assert (ours.citation.text, theirs.citation.text) == ("the secret plan", "the secret recipe")
    await world.call("DeleteCollection", pb.DeleteCollectionRequest(name="plans"), who=STRANGER)
    assert await world.found("secret", "plans") == ["a"]


@pytest.mark.parametrize("method", WRITES)
async def test_the_public_of_a_tenant_reads(world: World, method: str) -> None:
    """Everybody in the tenant searches a collection that is not private; only its writers change it."""
    await plans(world, private=False)
    assert await world.found("secret", "plans", who=BOB) == ["a"]
    error = await world.refusal(method, CALLS[method], who=BOB)
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, Reason.ACTION_NOT_ALLOWED)
    assert await world.found("secret", "plans") == ["a"]


@pytest.mark.parametrize("grantee", ["principal:bob", "group:staff"])
@pytest.mark.parametrize("mode", [pb.SEARCH_MODE_VECTOR, pb.SEARCH_MODE_TEXT, pb.SEARCH_MODE_HYBRID])
async def test_a_grant_and_its_end(world: World, grantee: str, mode: pb.SearchMode) -> None:
    """A grant opens a private collection at once, in every mode; revoked, it is closed at the next search."""
    await plans(world, private=True)
    await world.grant("plans", grantee, READ)
    assert await world.found("secret", "plans", who=BOB, mode=mode) == ["a"]
    assert (await world.refusal("DeleteCollection", CALLS["DeleteCollection"], who=BOB)).reason is (
        Reason.ACTION_NOT_ALLOWED
    )
    request = pb.RevokeAccessRequest(collection="plans", grantee=grantee)
    assert (await world.call("RevokeAccess", request)).revoked
    assert (await world.refusal("Search", search("plans"), who=BOB)).reason is Reason.COLLECTION_NOT_FOUND
    assert not (await world.call("RevokeAccess", request)).revoked


async def test_a_grant_for_writing(world: World) -> None:
    """It allows ingest, deletion and grants; a later grant for the same grantee replaces it."""
    await plans(world, private=True)
    await world.grant("plans", "group:staff", WRITE)
    assert (await world.ingest("plans", document("b", "another secret"), who=BOB)).documents == 1
    await world.grant("plans", "principal:carl", READ, who=BOB)
    await world.grant("plans", "group:staff", READ)
    listed = await world.call("ListGrants", pb.ListGrantsRequest(collection="plans"))
    assert [(grant.grantee, grant.level) for grant in listed.grants] == [
        ("group:staff", READ),
        ("principal:carl", READ),
    ]
    parts = [pb.IngestRequest(collection="plans"), pb.IngestRequest(document=document("c", "x"))]
    assert (await world.refusal("Ingest", iter(parts), who=BOB)).reason is Reason.ACTION_NOT_ALLOWED


async def test_groups_are_not_names(world: World) -> None:
    """Neither a principal called like a group nor a group with separators in its name opens anything."""
    await plans(world, private=True)
    await world.grant("plans", "group:staff", READ)
    tricks = [
        person("staff"),
        person("group:staff"),
        person("eve", groups=["staff,x", "{staff}", 'a","staff', "principal:ann", "STAFF"]),
        person("eve", groups=['staff"']),
    ]
    for who in tricks:
        assert (await world.refusal("Search", search("plans"), who=who)).reason is Reason.COLLECTION_NOT_FOUND


async def test_one_collection_too_many_refuses_all(world: World) -> None:
    """A search over several names is refused for the one that is not the caller's."""
    await plans(world, private=True)
    await world.create("open", who=BOB)
    request = pb.SearchRequest(query="secret", collections=["open", "plans"])
    error = await world.refusal("Search", request, who=BOB)
    assert error.metadata["collection"] == "plans"


async def test_lists_show_what_may_be_read(world: World) -> None:
    """Sorted, in pages, without others' private collections and without other tenants."""
    for name in ("c", "a", "b"):
        await world.create(name)
    await world.create("hidden", private=True)
    await world.create("elsewhere", who=STRANGER)
    token, names = "", []
    for _ in range(2):
        request = pb.ListCollectionsRequest(page_size=2, page_token=token)
        page = await world.call("ListCollections", request, who=BOB)
        names.append([collection.name for collection in page.collections])
        token = page.next_page_token
    assert names == [["a", "b"], ["c"]]
    assert token == ""
    request = pb.ListCollectionsRequest(page_token="x" * 10)
    assert (await world.refusal("ListCollections", request)).reason is Reason.PARAM_OUT_OF_RANGE


async def test_creating_again_returns_what_is_there(world: World) -> None:
    """Also by a new tenant's first calls at the same time, with one record of it; a taken name is refused."""
    tenant = str(uuid.uuid4())
    ann, bob = person(tenant=tenant), person("bob", tenant=tenant)
    made = await asyncio.gather(*(world.create("plans", private=True, who=ann) for _ in range(5)))
    assert len({collection.created_at.ToNanoseconds() for collection in made}) == 1
    assert not made[0].public_in_tenant
    assert [change[1:] for change in world.audit.changed] == [("collection.create", "collections/plans")]
    error = await world.refusal("CreateCollection", pb.CreateCollectionRequest(name="plans"), who=bob)
    assert error.reason is Reason.ACTION_NOT_ALLOWED


@pytest.mark.parametrize("method", [*CALLS, "ListCollections", "CreateCollection", "Prepare"])
async def test_scopes_and_services(world: World, method: str) -> None:
    """A key without the scope is refused, an operator's key has no documents, and Prepare is the router's."""
    requests = {
        **CALLS,
        "ListCollections": pb.ListCollectionsRequest(),
        "CreateCollection": pb.CreateCollectionRequest(name="x"),
        "Prepare": pb.PrepareRequest(query="x"),
    }
    bare = await world.refusal(method, requests[method], who=person(scopes=["generate"]))
    assert bare.reason is (Reason.PEER_IDENTITY_DENIED if method == "Prepare" else Reason.ACTION_NOT_ALLOWED)
    if method != "Prepare":
        operator = await world.refusal(method, requests[method], who=person("operator", tenant=""))
        assert operator.reason is Reason.ACTION_NOT_ALLOWED


async def test_prepare_acts_for_the_end_user(world: World) -> None:
    """The router's call sees what its caller sees, and only with the caller's right to search."""
    await plans(world, private=True)
    request = pb.PrepareRequest(query="the secret", collections=["plans"])
    answer = await world.call("Prepare", request, who=person(service="router"))
    assert [(one.mark, one.document_id) for one in answer.citations] == [(1, "a")]
    assert len(answer.embedding) == 384
    assert sum(value * value for value in answer.embedding) == pytest.approx(1.0, abs=1e-3)
    assert answer.embedding_model == "hashing-words"
    bob = await world.refusal("Prepare", request, who=person("bob", service="router"))
    assert bob.reason is Reason.COLLECTION_NOT_FOUND
    limited = await world.refusal("Prepare", request, who=person(service="router", scopes=["generate"]))
    assert limited.reason is Reason.ACTION_NOT_ALLOWED
    only = await world.call("Prepare", pb.PrepareRequest(query="x"), who=person(service="router", scopes=["generate"]))
    assert (len(only.citations), len(only.embedding)) == (0, 384)


async def test_every_reading_and_change_is_recorded(world: World) -> None:
    """Who read which version by which call, and who changed what; refused calls record nothing."""
    await plans(world, private=True)
    await world.search("secret", "plans")
    await world.call("GetDocument", CALLS["GetDocument"])
    await world.grant("plans", "group:staff", READ)
    await world.call("RevokeAccess", pb.RevokeAccessRequest(collection="plans", grantee="group:staff"))
    await world.call("DeleteDocuments", CALLS["DeleteDocuments"])
    await world.refusal("Search", search("plans"), who=BOB)
    await world.call("DeleteCollection", CALLS["DeleteCollection"])
    assert world.audit.read == [
        ("ann", "Search", [("plans", "a", 1)]),
        ("ann", "GetDocument", [("plans", "a", 1)]),
    ]
    assert [change[1:] for change in world.audit.changed] == [
        ("collection.create", "collections/plans"),
        ("documents.ingest", "collections/plans"),
        ("access.grant.read", "collections/plans/group:staff"),
        ("access.revoke", "collections/plans/group:staff"),
        ("documents.delete", "collections/plans"),
        ("collection.delete", "collections/plans"),
    ]
