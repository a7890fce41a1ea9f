"""Who may do what with a collection, as plain data."""

from collections.abc import Collection as Sized
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from services.kit.errors import DownstackError, FieldViolation, Reason

_KINDS = ("principal", "group")
_NAME_MAX_BYTES = 256


class AccessLevel(IntEnum):
    """What a grant allows; a higher level allows all that a lower one does."""

    NONE = 0
    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True, order=True)
class Grantee:
    """A principal or a group."""

    kind: str
    name: str

    @classmethod
    def parse(cls, value: str) -> Self:
        """`principal:NAME` or `group:NAME`; anything else is PARAM_OUT_OF_RANGE."""
        kind, _, name = value.partition(":")
        sound = kind in _KINDS and name.isprintable() and 0 < len(name.encode()) <= _NAME_MAX_BYTES
        if not sound or name != name.strip():
            raise DownstackError(
                Reason.PARAM_OUT_OF_RANGE,
                "The grantee is not `principal:NAME` or `group:NAME`.",
                violations=[FieldViolation("grantee", f"NAME has 1 to {_NAME_MAX_BYTES} bytes, all printable")],
            )
        return cls(kind, name)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class Grant:
    """A level given to somebody."""

    grantee: Grantee
    level: AccessLevel


@dataclass(frozen=True, slots=True)
class AccessRule:
    """All that decides about access to one collection.

    The policies in the database say the same in SQL; the tests hold the two together.
    """

    tenant_id: str
    owner: str
    private: bool
    grants: tuple[Grant, ...] = ()

    def level(self, *, tenant_id: str, principal: str, groups: Sized[str]) -> AccessLevel:
        """The highest level that this principal has, by itself or through its groups."""
        if tenant_id != self.tenant_id:
            return AccessLevel.NONE
        if principal == self.owner:
            return AccessLevel.WRITE
        mine = {Grantee("principal", principal), *(Grantee("group", group) for group in groups)}
        granted = max((grant.level for grant in self.grants if grant.grantee in mine), default=AccessLevel.NONE)
        return max(granted, AccessLevel.NONE if self.private else AccessLevel.READ)
