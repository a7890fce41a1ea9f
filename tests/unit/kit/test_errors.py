"""The closed list of errors and the collector of violations."""

import re

import pytest

from services.kit.errors import CODE_OF, Code, DownstackError, Reason, Violations


def test_every_reason_has_exactly_one_code() -> None:
    """A reason that is not in the table could not be sent."""
    assert set(CODE_OF) == set(Reason)
    assert set(CODE_OF.values()) == set(Code) - {Code.ALREADY_EXISTS}


def test_reasons_fit_error_info() -> None:
    """google.rpc.ErrorInfo limits a reason to 63 characters of upper snake case."""
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", reason) and len(reason) <= 63 for reason in Reason)
    assert all(reason.name == reason.value for reason in Reason)


def test_an_error_knows_its_code() -> None:
    error = DownstackError(Reason.OVERLOADED, "Too many.", metadata={"limit": "3"}, retry_after_s=2.0)
    assert error.code is Code.UNAVAILABLE
    assert (str(error), error.metadata, error.retry_after_s) == ("Too many.", {"limit": "3"}, 2.0)
    assert repr(error) == "DownstackError(OVERLOADED, 'Too many.')"


def test_violations_are_reported_together() -> None:
    """A caller learns all that is wrong in one answer."""
    violations = Violations()
    violations.check()
    assert not violations
    violations.add("spec.sampling.n", "must be 1 to 8")
    violations.add("spec.model", "is required")
    with pytest.raises(DownstackError) as caught:
        violations.check()
    assert caught.value.reason is Reason.PARAM_OUT_OF_RANGE
    assert [violation.field for violation in caught.value.violations] == ["spec.sampling.n", "spec.model"]
    assert caught.value.message == "spec.sampling.n: must be 1 to 8 (and 1 more)"
