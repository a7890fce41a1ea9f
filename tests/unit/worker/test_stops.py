"""Stop strings."""

from hypothesis import given
from hypothesis import strategies as st

from services.worker.domain.stops import StopMatcher

TEXT = st.text("abc", max_size=30)


@given(TEXT, st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.lists(st.integers(1, 5)))
def test_a_stop_string_is_found_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """What is shown is the text before the first stop string, whatever the pieces were."""
    pieces, rest = [], text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    matcher, whole = StopMatcher(stops), StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in [*pieces, *rest]) + matcher.flush()
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert matcher.stopped == bool(ends)
    assert shown.startswith(text[: min(ends)] if ends else text)
    assert not any(stop in shown for stop in stops)
    assert whole.push(text) + whole.flush() == (text[: min(ends)] if ends else text)
