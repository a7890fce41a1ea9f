"""Identities that services vouch for, and who may call what."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit import context
from services.kit.clock import ManualClock
from services.kit.errors import DownstackError, Reason
from services.kit.identity import (
    Access,
    AssertionAuthenticator,
    ChainAuthenticator,
    Identity,
    current_identity,
    internal_metadata,
    sign_assertion,
)

SECRET = b"0123456789abcdef"
ALICE = Identity("tenant-1", "alice", ("eng", "ops"), frozenset({"generate", "retrieve"}), "key-1")


async def refused(authenticator: AssertionAuthenticator | ChainAuthenticator, metadata: dict[str, str]) -> Reason:
    with pytest.raises(DownstackError) as caught:
        await authenticator.authenticate(metadata)
    return caught.value.reason


async def test_an_assertion_carries_the_whole_identity() -> None:
    clock = ManualClock()
    metadata = dict(internal_metadata("router", identity=ALICE, secret=SECRET, now=clock.now()))
    identity = await AssertionAuthenticator(SECRET, clock).authenticate(metadata)
    assert identity == dataclasses.replace(ALICE, service="router")


async def test_a_service_can_act_for_nobody() -> None:
    clock = ManualClock()
    metadata = dict(internal_metadata("worker", identity=None, secret=SECRET, now=clock.now()))
    identity = await AssertionAuthenticator(SECRET, clock).authenticate(metadata)
    assert (identity.tenant_id, identity.service, identity.scopes) == ("", "worker", frozenset())


@pytest.mark.parametrize(("seconds", "accepted"), [(0, True), (60, True), (64, True), (66, False), (3600, False)])
async def test_an_assertion_lives_a_minute(seconds: float, *, accepted: bool) -> None:
    clock = ManualClock()
    metadata = {"x-downstack-assertion": sign_assertion(ALICE, secret=SECRET, now=clock.now())}
    clock.advance(seconds)
    authenticator = AssertionAuthenticator(SECRET, clock)
    if accepted:
        assert (await authenticator.authenticate(metadata)).principal == "alice"
    else:
        assert await refused(authenticator, metadata) is Reason.AUTH_EXPIRED


async def test_an_assertion_from_the_future_is_refused() -> None:
    clock = ManualClock()
    metadata = {"x-downstack-assertion": sign_assertion(ALICE, secret=SECRET, now=clock.now() + 30)}
    assert await refused(AssertionAuthenticator(SECRET, clock), metadata) is Reason.AUTH_EXPIRED


@given(st.text(), st.binary(max_size=40))
async def test_what_nobody_signed_is_refused(text: str, other: bytes) -> None:
    """Whatever is sent: a refusal, never a defect."""
    clock = ManualClock()
    authenticator = AssertionAuthenticator(SECRET, clock)
    foreign = sign_assertion(ALICE, secret=SECRET + other + b"x", now=clock.now())
    for assertion in (f"x{text}", foreign, foreign.partition(".")[0], f"{foreign}."):
        assert await refused(authenticator, {"x-downstack-assertion": assertion}) is Reason.AUTH_INVALID


async def test_the_chain_asks_each_until_one_finds_something() -> None:
    """A bad assertion is not given a second chance as an API key."""

    class Keys:
        async def authenticate(self, metadata: dict[str, str]) -> Identity:
            if metadata.get("authorization") != "Bearer key":
                raise DownstackError(Reason.AUTH_MISSING, "no key")
            return ALICE

    chain = ChainAuthenticator([AssertionAuthenticator(SECRET, ManualClock()), Keys()])
    assert await chain.authenticate({"authorization": "Bearer key"}) == ALICE
    assert await refused(chain, {}) is Reason.AUTH_MISSING
    both = {"authorization": "Bearer key", "x-downstack-assertion": "forged"}
    assert await refused(chain, both) is Reason.AUTH_INVALID


async def test_internal_calls_carry_the_request_id() -> None:
    context.request_id.set("req_1")
    metadata = dict(internal_metadata("router", identity=ALICE, secret=SECRET, now=0.0))
    assert metadata["x-request-id"] == "req_1"
    assert "traceparent" not in metadata


ROUTER = dataclasses.replace(ALICE, service="router", scopes=frozenset())
ADMIN = dataclasses.replace(ALICE, scopes=frozenset({"admin"}))


@pytest.mark.parametrize(
    ("access", "identity", "refusal"),
    [
        (Access.PUBLIC, ADMIN, None),
        (Access.scope("generate"), ALICE, None),
        (Access.scope("usage", "retrieve"), ALICE, None),
        (Access.scope("generate"), ADMIN, Reason.ACTION_NOT_ALLOWED),
        (Access.scope("generate"), ROUTER, Reason.ACTION_NOT_ALLOWED),
        (Access.service("router"), ROUTER, None),
        (Access.service("worker"), ROUTER, Reason.PEER_IDENTITY_DENIED),
        (Access.service("router"), ALICE, Reason.PEER_IDENTITY_DENIED),
        (Access.any_of(Access.service("router"), Access.scope("admin")), ADMIN, None),
        (Access.any_of(Access.service("router"), Access.scope("admin")), ROUTER, None),
        (Access.any_of(Access.service("router"), Access.scope("admin")), ALICE, Reason.ACTION_NOT_ALLOWED),
        (Access(), ALICE, Reason.PEER_IDENTITY_DENIED),
    ],
)
def test_access(access: Access, identity: Identity, refusal: Reason | None) -> None:
    if refusal is None:
        access.check(identity)
        return
    with pytest.raises(DownstackError) as caught:
        access.check(identity)
    assert caught.value.reason is refusal


def test_an_unnamed_service_is_not_let_in_by_an_empty_name() -> None:
    """The holder of a key has the service "", which no access lists."""
    with pytest.raises(DownstackError):
        Access.service("").check(ALICE)


def test_outside_of_a_call_there_is_no_identity() -> None:
    with pytest.raises(DownstackError) as caught:
        current_identity()
    assert caught.value.reason is Reason.AUTH_MISSING
