"""Who may do what with a collection."""

import pytest

from services.kit.errors import DownstackError, Reason
from services.retriever.domain.access import AccessLevel, AccessRule, Grant, Grantee

READ, WRITE, NONE = AccessLevel.READ, AccessLevel.WRITE, AccessLevel.NONE


def rule(*grants: tuple[str, AccessLevel], private: bool = True) -> AccessRule:
    return AccessRule(
        tenant_id="t1",
        owner="ann",
        private=private,
        grants=tuple(Grant(Grantee.parse(grantee), level) for grantee, level in grants),
    )


@pytest.mark.parametrize(
    ("access", "principal", "groups", "expected"),
    [
        (rule(), "ann", (), WRITE),
        (rule(), "bob", (), NONE),
        (rule(private=False), "bob", (), READ),
        (rule(("principal:bob", READ)), "bob", (), READ),
        (rule(("principal:bob", WRITE)), "bob", (), WRITE),
        (rule(("group:staff", READ)), "bob", ("staff",), READ),
        (rule(("group:staff", READ)), "bob", ("other",), NONE),
        (rule(("group:bob", WRITE)), "bob", (), NONE),
        (rule(("principal:staff", WRITE)), "bob", ("staff",), NONE),
        (rule(("group:a", READ), ("group:b", WRITE)), "bob", ("a", "b"), WRITE),
        (rule(("principal:bob", WRITE), private=False), "bob", (), WRITE),
    ],
)
def test_level(access: AccessRule, principal: str, groups: tuple[str, ...], expected: AccessLevel) -> None:
    """Owners write; others have the highest level granted to them or to a group of theirs; the public reads."""
    assert access.level(tenant_id="t1", principal=principal, groups=groups) == expected
    assert access.level(tenant_id="t2", principal=principal, groups=groups) == NONE


@pytest.mark.parametrize(
    "grantee",
    ["", "bob", "user:bob", "principal:", "group:", "principal: bob", "group:a\n", "PRINCIPAL:bob", "group:\x00"],
)
def test_bad_grantees(grantee: str) -> None:
    """Anything but a kind and a printable name is refused, with its field."""
    with pytest.raises(DownstackError) as caught:
        Grantee.parse(grantee)
    assert caught.value.reason is Reason.PARAM_OUT_OF_RANGE
    assert [violation.field for violation in caught.value.violations] == ["grantee"]


def test_names_may_hold_colons_and_any_script() -> None:
    """Only the first colon divides, and text and value are the same thing."""
    for text in ("principal:a:b", "group:Löwe 語"):
        assert str(Grantee.parse(text)) == text
