"""The grid as a page: what each policy reached, where ours leads and where it loses."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.routes.cells import Cell

_OURS = "worth"
_QUEUED = "+queue"
_ALWAYS_QUEUED = frozenset({"random", "round-robin", "least-loaded"})
_SATURATED = 0.95
Figures = Mapping[str, Any]
_STANDING = (
    "Ours (`worth`) against the best of the others: where it gives as many good answers or more, and, where even the "
    "best of them serves less than 95 % well (saturated), means of the ratios of good answers and of TTFT p99."
)


@dataclass(frozen=True, slots=True)
class Point:
    """Where all policies meet: one trace, load, cache size and number of schedulers."""

    trace: str
    load: float
    kv_blocks: int
    schedulers: int
    cells: Sequence[Cell]

    @property
    def name(self) -> str:
        blocks = self.kv_blocks or "profile's"
        return f"{self.trace.partition('.')[0]}, load {self.load:g}, {blocks} blocks, {self.schedulers} schedulers"


class Grid:
    """Points with the figures of each policy there."""

    def __init__(self, rows: Sequence[tuple[Point, Sequence[Figures]]]) -> None:
        self.rows = [
            (point, {cell.policy: each for cell, each in zip(point.cells, figures, strict=True)})
            for point, figures in rows
        ]

    def summary(self) -> dict[str, Any]:
        """How ours stands against the others: as their systems run them, and with all of them behind our queue."""
        if not all(_OURS in figures for _, figures in self.rows):
            return {}
        largest = max(point.kv_blocks for point, _ in self.rows)
        hits = {
            point.name: round(figures[_OURS]["hit_share_of_bound"], 4)
            for point, figures in self.rows
            if point.kv_blocks == largest and figures[_OURS]["hit_tokens"]
        }
        standing = {
            str(count): {
                "as_published": self._against(lambda name: not name.endswith(_QUEUED), count),
                "behind_our_queue": self._against(lambda name: name.endswith(_QUEUED) or name in _ALWAYS_QUEUED, count),
            }
            for count in sorted({point.schedulers for point, _ in self.rows})
        }
        return {"schedulers": standing, "hit_share_of_bound_largest_cache": hits}

    def _against(self, chosen: Callable[[str], bool], schedulers: int) -> dict[str, Any]:
        """Ours against the best of some others, at every point and at the saturated ones.

        Saturated: the best of these others serves less than 95 % within the objectives.
        """
        rows = []
        for point, figures in self.rows:
            others = [each for name, each in figures.items() if name != _OURS and chosen(name)]
            if others and point.schedulers == schedulers:
                rows.append((point, figures[_OURS], others))
        ratios = {point.name: _ratio(ours, others) for point, ours, others in rows}
        full = [row for row in rows if max(each["good_share"] for each in row[2]) < _SATURATED]
        tails = [ours["ttft_p99_ms"] / min(each["ttft_p99_ms"] for each in others) for _, ours, others in full]
        return {
            "points": len(rows),
            "at_or_above_all": sum(ratio >= 1 for ratio in ratios.values()),
            "saturated": len(full),
            "goodput_ratio_saturated": _mean([_ratio(ours, others) for _, ours, others in full]),
            "ttft_p99_ratio_saturated": _mean(tails),
            "lost": {name: round(ratio, 4) for name, ratio in ratios.items() if ratio < 1},
        }


def _ratio(ours: Figures, others: Sequence[Figures]) -> float:
    """Good answers to the same arrivals: ours by the most of the others."""
    best = max(float(each["good_share"]) for each in others)
    return float(ours["good_share"]) / best if best else 1.0


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def write(grid: Grid, stress: Mapping[str, Any], facts: Mapping[str, Any], folder: Path, *, wall_s: float) -> None:
    """Write routing.md and one plot for each trace."""
    plots = _plots(grid, folder)
    pages = [_head(grid, facts, wall_s=wall_s), *(f"![goodput by load]({plot.name})\n" for plot in plots)]
    if stress:
        pages.append(_stress(stress))
    pages += [_table(point, figures) for point, figures in grid.rows]
    (folder / "routing.md").write_text("\n".join(pages), encoding="utf-8")


def _head(grid: Grid, facts: Mapping[str, Any], *, wall_s: float) -> str:
    asked, machine, found, wish = facts["asked"], facts["machine"], grid.summary(), facts["objectives"]
    how = (
        "Made by `make bench-routing`. The scheduler's own code places, the simulated engine answers, the clock is "
        "virtual. Every policy sees the same arrivals; what is refused counts as not good. The policies of other "
        "systems place on arrival, as those systems do; `NAME+queue` is the same choice of a worker behind our queue "
        "and admission. `random`, `round-robin` and `least-loaded` are behind it as well. With several schedulers, "
        "requests take turns between them, which is the hard case: by default a router sends all requests for a model "
        "to one of them."
    )
    what = (
        f"{asked['workers']} workers of the profile `{asked['profile']}`, {asked['requests'] or 'all'} requests of "
        "each trace. Load is a share of what the fleet completes with least-loaded placement when all requests come at "
        f"once. Good: first token within {wish['ttft_s']:g} s, each further one within {1000 * wish['tpot_s']:g} ms. "
        f"{machine['at']}, Python {machine['python']}, {machine['cores']} cores, {wall_s / 60:.0f} minutes."
    )
    lines = ["# Placement policies, replayed", "", how, "", what, ""]
    if found:
        lines += _standing(found)
    return "\n".join(lines)


def _standing(found: Mapping[str, Any]) -> list[str]:
    titles = {"as_published": "as their systems run them", "behind_our_queue": "behind our queue"}
    lines = [
        _STANDING,
        "",
        "| schedulers | the others | points not lost | saturated points | good answers there | TTFT p99 there |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lost: list[str] = []
    for count, kinds in found["schedulers"].items():
        for kind, one in kinds.items():
            lines.append(
                f"| {count} | {titles[kind]} | {one['at_or_above_all']} of {one['points']} | {one['saturated']} | "
                f"{_number(one['goodput_ratio_saturated'])} | {_number(one['ttft_p99_ratio_saturated'])} |"
            )
            lost += [f"- {name}, {titles[kind]}: {ratio:.3f}" for name, ratio in one["lost"].items()]
    hits = "; ".join(f"{name}: {_number(share)}" for name, share in found["hit_share_of_bound_largest_cache"].items())
    lines += ["", f"Hits of ours with the largest cache, as shares of the bound: {hits}.", ""]
    if lost:
        lines += ["Where one of the others gives more good answers (ours / best of them):", "", *lost, ""]
    return lines


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _stress(stress: Mapping[str, Any]) -> str:
    flood = stress["overload"]
    best = (
        f"The first {flood['rows'][0]['requests']} requests of the trace, one scheduler, the profile's KV blocks. "
        "Goodput counts answers, so it grows with the load as long as more short prompts can be chosen from. Its best, "
        f"{flood['best_goodput']:.2f}/s, was found at a load of {flood['best_load_per_s']:.2f} requests/s. Beyond it:"
    )
    lines = ["## Too much traffic, and a greedy tenant (`worth`)", "", best, ""]
    lines += ["| load | goodput/s | share of the best | refused | TTFT p99 ms |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {each['factor']:g} x | {each['goodput']:.2f} | {each['share_of_best']:.3f} | "
        f"{each['refused']} of {each['requests']} | {each['ttft_p99_ms']:.0f} |"
        for each in flood["rows"]
    ]
    one, equal = stress["greedy"], stress["backlogged"]
    said = (
        f"{one['tenants']} tenants, of which one sends {one['excess']:g} times the share of another: the others' TTFT "
        f"p99 is {one['ttft_p99_beside_ms']:.0f} ms beside it and {one['ttft_p99_alone_ms']:.0f} ms without it "
        f"({one['ratio']:.2f} times); {one['refused_beside']} and {one['refused_alone']} of their "
        f"{one['requests_of_others']} requests are refused. Jain's index of the tokens of {equal['tenants']} equal "
        f"tenants that always wait: {equal['jain']:.4f}."
    )
    lines += ["", said, ""]
    return "\n".join(lines)


def _table(point: Point, figures: Mapping[str, Figures]) -> str:
    lines = [
        f"## {point.name[0].upper()}{point.name[1:]}",
        "",
        "| policy | goodput/s | good % | refused | TTFT p50 ms | p99 ms | TPOT p50 ms | hits % | of bound % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in sorted(figures.items(), key=lambda pair: -pair[1]["goodput"]):
        shown = f"**{name}**" if name == _OURS else name
        lines.append(
            f"| {shown} | {one['goodput']:.2f} | {100 * one['good_share']:.1f} | {one['refused']} | "
            f"{one['ttft_p50_ms']:.0f} | {one['ttft_p99_ms']:.0f} | {one['tpot_p50_ms']:.1f} | "
            f"{100 * one['hit_rate']:.1f} | {100 * one['hit_share_of_bound']:.1f} |"
        )
    return "\n".join([*lines, ""])


def _plots(grid: Grid, folder: Path) -> list[Path]:
    """Goodput by load: a picture for each trace, a panel for each cache size, with one scheduler."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- slow to load

    made = []
    for trace in dict.fromkeys(point.trace for point, _ in grid.rows):
        sizes = list(dict.fromkeys(point.kv_blocks for point, _ in grid.rows if point.trace == trace))
        figure = Figure(figsize=(4.2 * len(sizes), 3.6), layout="constrained")
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for axes, blocks in zip(panels, sizes, strict=True):
            _panel(axes, [row for row in grid.rows if row[0].trace == trace and row[0].kv_blocks == blocks])
            axes.set_title(f"{blocks} KV blocks" if blocks else "KV blocks of the profile", fontsize="small")
        panels[0].set_ylabel("answers/s within the objectives")
        panels[-1].legend(fontsize="x-small", frameon=False)
        path = folder / f"routing-{trace.partition('.')[0]}.png"
        figure.savefig(path, dpi=110)
        made.append(path)
    return made


def _panel(axes: Any, rows: Sequence[tuple[Point, Mapping[str, Figures]]]) -> None:
    fewest = min(point.schedulers for point, _ in rows)
    chosen = sorted((row for row in rows if row[0].schedulers == fewest), key=lambda row: row[0].load)
    for name in chosen[0][1]:
        style = {"color": "black", "linewidth": 2.2, "zorder": 3} if name == _OURS else {"linewidth": 1.0}
        axes.plot([p.load for p, _ in chosen], [f[name]["goodput"] for _, f in chosen], marker=".", label=name, **style)
    axes.set_xlabel("load")
    axes.spines[["top", "right"]].set_visible(False)
