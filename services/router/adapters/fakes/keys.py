"""API keys by a table."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity


@dataclass(frozen=True)
class FakeKeys:
    """Accepts `authorization: Bearer KEY` for the keys it was given."""

    identities: Mapping[str, Identity]

    async def authenticate(self, metadata: Mapping[str, str]) -> Identity:
        scheme, _, key = metadata.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not key:
            raise DownstackError(Reason.AUTH_MISSING, "This call needs an API key.")
        identity = self.identities.get(key)
        if identity is None:
            raise DownstackError(Reason.AUTH_INVALID, "The API key is not valid.")
        return identity
