"""The limits of sampling parameters and prompts."""

import json
import math
from dataclasses import replace

import pytest

from services.kit.errors import DownstackError, Reason
from services.worker.domain.sampling import Bounds, Sampling, check_prompt, check_sampling

BOUNDS = Bounds(context_tokens=100, vocab_size=50, max_output_tokens=20)
GOOD = Sampling(max_tokens=20)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 21), ("min_tokens", 21), ("temperature", -0.1), ("temperature", 2.1),
        ("temperature", math.nan), ("temperature", math.inf), ("top_p", 0.0), ("top_p", 1.1), ("top_k", 51),
        ("min_p", -0.1), ("min_p", 1.1), ("frequency_penalty", 2.1), ("presence_penalty", -2.1),
        ("repetition_penalty", 0.0), ("repetition_penalty", 2.1), ("n", 0), ("n", 9), ("logprobs", 21),
        ("seed", 2**63), ("stop", ("",)), ("stop", ("é" * 129,)), ("stop", ("x",) * 17), ("stop_token_ids", (50,)),
        ("stop_token_ids", (1,) * 65), ("json_schema", ""), ("json_schema", "x" * 65537), ("regex", "x" * 8193),
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_named(field: str, value: object) -> None:
    """The refusal names the field, and only that."""
    with pytest.raises(DownstackError) as caught:
        check_sampling(replace(GOOD, **{field: value}), BOUNDS)
    assert caught.value.reason == Reason.PARAM_OUT_OF_RANGE
    assert [violation.field for violation in caught.value.violations] == [f"sampling.{field}"]


@pytest.mark.parametrize(
    "constraint",
    [
        {"json_schema": "{"}, {"json_schema": "7"}, {"json_schema": "[" * 30_000}, {"json_schema": '{"a": ' * 9000},
        {"json_schema": '{"a": ' * 33 + "1" + "}" * 33}, {"json_schema": json.dumps({"enum": list(range(4001))})},
        {"json_schema": '{"minimum": ' + "9" * 5000 + "}"}, {"regex": "a\0b"},
    ],
)  # fmt: skip
def test_a_constraint_that_no_compiler_should_see_is_refused(constraint: dict[str, str]) -> None:
    """BAD_SCHEMA, without a word of the constraint in it."""
    with pytest.raises(DownstackError) as caught:
        check_sampling(replace(GOOD, **constraint), BOUNDS)  # type: ignore[arg-type]
    assert caught.value.reason == Reason.BAD_SCHEMA
    assert len(caught.value.message) < 100


def test_everything_that_is_wrong_is_told_at_once() -> None:
    """Three faults, three violations."""
    with pytest.raises(DownstackError) as caught:
        check_sampling(replace(GOOD, n=0, temperature=9, top_p=0), BOUNDS)
    assert {violation.field for violation in caught.value.violations} == {
        "sampling.n", "sampling.temperature", "sampling.top_p",
    }  # fmt: skip


def test_the_limits_themselves_are_allowed() -> None:
    """The defaults, and every parameter at its bound."""
    check_sampling(GOOD, BOUNDS)
    check_sampling(replace(GOOD, temperature=2, top_p=1, top_k=50, n=8, logprobs=20, seed=2**63 - 1), BOUNDS)
    check_sampling(replace(GOOD, json_schema='{"a": ' * 31 + "1" + "}" * 31), BOUNDS)
    check_sampling(replace(GOOD, stop=("é" * 128,) * 16, stop_token_ids=(49,) * 64, regex="x" * 8192), BOUNDS)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [((), Reason.PARAM_OUT_OF_RANGE), ((50,), Reason.PARAM_OUT_OF_RANGE), ((1,) * 100, Reason.PROMPT_TOO_LONG)],
)
def test_a_prompt_that_cannot_run_is_refused(prompt: tuple[int, ...], reason: Reason) -> None:
    """One token of the answer must fit behind it."""
    with pytest.raises(DownstackError) as caught:
        check_prompt(prompt, BOUNDS)
    assert caught.value.reason == reason
    check_prompt((1,) * 99, BOUNDS)
