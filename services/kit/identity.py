"""Who calls: identities, how one service vouches for another's caller, and who may call what."""

import base64
import dataclasses
import hmac
import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

from services.kit import context, telemetry
from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason

ASSERTION_KEY = "x-downstack-assertion"
REQUEST_ID_KEY = "x-request-id"
_PURPOSE = b"downstack assertion v1"
_LIFE_S = 60.0
# Clocks of two machines differ a little.
_SKEW_S = 5.0
_MAX_CHARS = 8192
# A caller may send the same assertion with all the calls of its life.
_MAX_VERIFIED = 1024


@dataclass(frozen=True)
class Identity:
    """Who a call is made for.

    Attributes:
        tenant_id: The tenant's UUID. Empty for an operator, and for a service that acts for nobody.
        principal: Who acts; permissions on documents name it.
        groups: The principal's groups.
        scopes: What the caller may do.
        key_id: The public part of the API key. Empty where there was none.
        service: The service that makes the call, such as "router". Empty for the holder of a key.
    """

    tenant_id: str
    principal: str
    groups: tuple[str, ...]
    scopes: frozenset[str]
    key_id: str
    service: str = ""


_current: ContextVar[Identity | None] = ContextVar("downstack_identity", default=None)


def current_identity() -> Identity:
    """The identity of the call that is being served.

    Raises:
        DownstackError: AUTH_MISSING: the method is public, or no call is being served.
    """
    identity = _current.get()
    if identity is None:
        raise DownstackError(Reason.AUTH_MISSING, "This call needs an API key.")
    return identity


def set_current_identity(identity: Identity) -> None:
    """Makes an identity the current one for the rest of this task."""
    _current.set(identity)
    context.tenant.set(identity.tenant_id)


class Authenticator(Protocol):
    """Finds out who calls."""

    async def authenticate(self, metadata: Mapping[str, str]) -> Identity:
        """The caller's identity, from the call's metadata (keys in lower case).

        Raises:
            DownstackError: AUTH_MISSING, AUTH_INVALID, AUTH_EXPIRED or AUTH_REVOKED.
        """
        ...


def sign_assertion(identity: Identity, *, secret: bytes, now: float) -> str:
    """The value of `x-downstack-assertion`: the identity, its time and a signature, good for a minute."""
    claims = {
        "t": identity.tenant_id,
        "p": identity.principal,
        "g": identity.groups,
        "s": sorted(identity.scopes),
        "k": identity.key_id,
        "v": identity.service,
        "at": now,
    }
    body = _encode(json.dumps(claims, separators=(",", ":")).encode())
    return f"{body}.{_encode(_signature(secret, body))}"


class AssertionAuthenticator:
    """Believes an identity that another service has signed with the shared secret."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        self._secret = secret
        self._clock = clock

    async def authenticate(self, metadata: Mapping[str, str]) -> Identity:
        assertion = metadata.get(ASSERTION_KEY, "")
        if not assertion:
            raise DownstackError(Reason.AUTH_MISSING, "This call needs the assertion of a service.")
        identity, at = _verified(self._secret, assertion)
        if not -_SKEW_S <= self._clock.now() - at <= _LIFE_S + _SKEW_S:
            raise DownstackError(Reason.AUTH_EXPIRED, "The assertion of the calling service has expired.")
        return identity


@lru_cache(maxsize=_MAX_VERIFIED)
def _verified(secret: bytes, assertion: str) -> tuple[Identity, float]:
    """The identity that an assertion vouches for, and when it was signed. Only what is valid is remembered."""
    body, _, signature = assertion.partition(".")
    expected = _encode(_signature(secret, body))
    if len(assertion) > _MAX_CHARS or not hmac.compare_digest(expected.encode(), signature.encode()):
        raise DownstackError(Reason.AUTH_INVALID, "The assertion of the calling service is not valid.")
    claims = json.loads(_decode(body))
    identity = Identity(
        tenant_id=claims["t"],
        principal=claims["p"],
        groups=tuple(claims["g"]),
        scopes=frozenset(claims["s"]),
        key_id=claims["k"],
        service=claims["v"],
    )
    return identity, claims["at"]


class ChainAuthenticator:
    """Asks the assertion's authenticator where a call carries an assertion, and the other ones in order where not.

    An authenticator that finds nothing of its kind (AUTH_MISSING) passes the call on; every other refusal stands.
    """

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        self._authenticators = tuple(authenticators)

    async def authenticate(self, metadata: Mapping[str, str]) -> Identity:
        for authenticator in self._authenticators:
            try:
                return await authenticator.authenticate(metadata)
            except DownstackError as error:
                if error.reason is not Reason.AUTH_MISSING:
                    raise
        raise DownstackError(Reason.AUTH_MISSING, "This call needs an API key: send `authorization: Bearer KEY`.")


@dataclass(frozen=True)
class Access:
    """Who may call a method: holders of any of the scopes, and any of the services.

    Attributes:
        scopes: Any one of these scopes is enough.
        services: Any one of these services is enough.
        public: Nobody is asked.
    """

    PUBLIC: ClassVar["Access"]

    scopes: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    public: bool = False

    @staticmethod
    def scope(*names: str) -> "Access":
        """Callers with any of these scopes."""
        return Access(scopes=frozenset(names))

    @staticmethod
    def service(*names: str) -> "Access":
        """These services."""
        return Access(services=frozenset(names))

    @staticmethod
    def any_of(*choices: "Access") -> "Access":
        """Callers whom any of the choices lets in."""
        return Access(
            scopes=frozenset[str]().union(*(choice.scopes for choice in choices)),
            services=frozenset[str]().union(*(choice.services for choice in choices)),
            public=any(choice.public for choice in choices),
        )

    def check(self, identity: Identity) -> None:
        """Lets the caller in, or raises.

        Raises:
            DownstackError: ACTION_NOT_ALLOWED for a key without the scope, PEER_IDENTITY_DENIED where only services
                may call.
        """
        by_service = bool(identity.service) and identity.service in self.services
        if self.public or by_service or identity.scopes & self.scopes:
            return
        if not self.scopes:
            raise DownstackError(Reason.PEER_IDENTITY_DENIED, "Only services of the system may call this method.")
        needed = " or ".join(f"`{name}`" for name in sorted(self.scopes))
        raise DownstackError(
            Reason.ACTION_NOT_ALLOWED,
            f"This method needs a key with the scope {needed}.",
            metadata={"scopes": ",".join(sorted(self.scopes))},
        )


Access.PUBLIC = Access(public=True)


def internal_metadata(
    service: str, *, identity: Identity | None, secret: bytes, now: float
) -> tuple[tuple[str, str], ...]:
    """What a service sends along when it calls another: who it is and for whom, the request id, the trace.

    `identity` is the caller for whom it acts; None: it acts for nobody.
    """
    acting = identity or Identity("", f"service:{service}", (), frozenset(), "")
    assertion = sign_assertion(dataclasses.replace(acting, service=service), secret=secret, now=now)
    metadata = [(ASSERTION_KEY, assertion), *telemetry.trace_headers().items()]
    if request_id := context.current_request_id():
        metadata.append((REQUEST_ID_KEY, request_id))
    return tuple(metadata)


def _signature(secret: bytes, body: str) -> bytes:
    return hmac.digest(_key(secret), body.encode(), "sha256")


@lru_cache(maxsize=8)
def _key(secret: bytes) -> bytes:
    # A key of its own for each purpose: a ticket's signature is no assertion's.
    return hmac.digest(secret, _PURPOSE, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
