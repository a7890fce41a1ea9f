from downstack.local.restarts import Backoff
from downstack.local.state import PartState, Phase, RunState


def test_a_state_survives_the_file() -> None:
    state = RunState(phase=Phase.READY, pid=7, models=("a",), endpoints={"router": "127.0.0.1:1"})
    state = state.with_part("router", state=PartState.READY, pid=8, address="127.0.0.1:1")
    assert RunState.from_json(state.to_json()) == state


def test_a_changed_part_keeps_its_place_and_its_other_fields() -> None:
    state = RunState().with_part("a", pid=1, log="x").with_part("b", pid=2).with_part("a", pid=3)
    assert list(state.parts) == ["a", "b"]
    assert (state.parts["a"].pid, state.parts["a"].log) == (3, "x")


def test_delays_double_up_to_the_longest_and_start_over_after_a_steady_life() -> None:
    backoff = Backoff(first_s=1, longest_s=4, steady_s=10)
    assert [backoff.after_death(0) for _ in range(4)] == [1, 2, 4, 4]
    assert backoff.after_death(10) == 1
    assert backoff.after_death(0) == 2
