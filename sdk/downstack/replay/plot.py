"""The comparison as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

from downstack.replay.compare import Result
from downstack.replay.trace import TraceError

_PANELS: tuple[tuple[str, Callable[[Result], float]], ...] = (
    ("goodput, answers/s", lambda result: result.summary.goodput),
    ("TTFT p50, s", lambda result: result.summary.ttft_p50_ms / 1000),
    ("TTFT p99, s", lambda result: result.summary.ttft_p99_ms / 1000),
    ("hits, share of the bound", lambda result: result.summary.hit_share_of_bound),
)


def draw(results: Sequence[Result], path: Path, *, title: str) -> None:
    """Write bars for each policy into an image.

    Raises:
        TraceError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 -- an extra, and slow to load
    except ImportError as error:
        raise TraceError("a plot needs matplotlib: install downstack[replay]") from error
    figure = Figure(figsize=(3.2 * len(_PANELS), 0.8 + 0.35 * len(results)), layout="constrained")
    names = [result.policy for result in results]
    for axes, (label, value) in zip(figure.subplots(1, len(_PANELS), sharey=True), _PANELS, strict=True):
        axes.barh(names, [value(result) for result in results], color="tab:blue")
        axes.set_xlabel(label)
        axes.invert_yaxis() if axes is figure.axes[0] else None
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize="medium")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise TraceError(f"the plot {path} cannot be written: {error}") from error
