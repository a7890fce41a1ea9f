"""The step that looks at the deadline, where a real call could not be made to arrive late."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.kit.errors import Code, DownstackError, Reason
from services.kit.interceptors import Deadline, ServerCall


def call(left: float | None) -> ServerCall:
    return ServerCall("/t.v1.T/T", {}, SimpleNamespace(time_remaining=lambda: left), bidi=False)


async def test_a_deadline_that_is_gone_is_refused_before_any_work() -> None:
    """The caller no longer waits; what would be computed would be thrown away."""
    served = False

    async def proceed() -> Any:
        nonlocal served
        served = True

    step = Deadline(default_s=10.0, is_endless=lambda _: False)
    with pytest.raises(DownstackError) as caught:
        await step(call(0.0), proceed)
    assert (caught.value.reason, caught.value.code) == (Reason.DEADLINE_IN_QUEUE, Code.DEADLINE_EXCEEDED)
    assert not served
    await step(call(1.0), proceed)
    assert served
