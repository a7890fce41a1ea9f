"""The command `replay`: a trace through the scheduler's policies on a simulated fleet."""

import json as jsonlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from downstack.cli.output import CommandError, print_table
from downstack.replay.trace import TraceError, TraceFormat, read_trace

if TYPE_CHECKING:
    from downstack.replay.compare import Result, Setting
    from downstack.replay.workload import Job

_ALL = "all"
_STANDARD_OUTPUT = "-"


def replay(
    trace: Annotated[Path, typer.Option(help="The trace.")],
    format: Annotated[TraceFormat, typer.Option(help="Its format.")] = TraceFormat.MOONCAKE,  # noqa: A002  the option's name
    policy: Annotated[str, typer.Option(help="NAME[+queue][,NAME…] or `all`.")] = "worth,least-loaded,round-robin",
    workers: Annotated[str, typer.Option(help="The fleet, N[xPROFILE][,N[xPROFILE]…].")] = "16",
    profile: Annotated[str, typer.Option(help="The kind of worker where --workers does not say it.")] = "h100-8b",
    speed: Annotated[float, typer.Option(help="Play the trace this many times as fast.")] = 1.0,
    kv_blocks: Annotated[int, typer.Option(min=0, help="KV blocks of 512 tokens a worker. 0: the profile's.")] = 0,
    tenants: Annotated[int, typer.Option(min=1, help="Tenants; conversations go to them by Zipf's law.")] = 1,
    schedulers: Annotated[int, typer.Option(min=1, max=64, help="Schedulers that share the fleet.")] = 1,
    requests: Annotated[int, typer.Option(min=0, help="Only the first so many. 0: all.")] = 0,
    ttft_ms: Annotated[float, typer.Option(min=1, help="Objective: time to the first token.")] = 5000.0,
    tpot_ms: Annotated[float, typer.Option(min=1, help="Objective: time for each further token.")] = 100.0,
    deadline_s: Annotated[float, typer.Option(min=1, help="Each request's deadline.")] = 300.0,
    admission: Annotated[bool, typer.Option(help="Turn away what would have to wait and miss the objective.")] = True,
    faults: Annotated[Path | None, typer.Option(help='JSON: [{"at": 60, "worker": 0, "down_s": 30}].')] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is left to chance.")] = 0,
    json: Annotated[str, typer.Option(help="Write the figures into this file; `-`: print them.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw the comparison into this image.")] = None,
) -> None:
    """Replay a trace on a simulated fleet, once for each policy, and compare what came of it.

    The scheduler's own code decides, the simulated engine answers, and the clock is virtual. Policies of other systems
    place on arrival, as those do; NAME+queue puts them behind our queue and admission.
    """
    # What it imports is slow to load, and needs more than the client does.
    from downstack.replay.compare import compare  # noqa: PLC0415
    from downstack.replay.workload import bound, make_jobs  # noqa: PLC0415

    if speed <= 0:
        raise typer.BadParameter("--speed must be more than 0")
    began = time.perf_counter()
    try:
        names = _policies(policy)
        setting = _setting(
            _fleet(workers, profile, kv_blocks=kv_blocks),
            objectives=(ttft_ms / 1000, tpot_ms / 1000),
            deadline_s=deadline_s,
            schedulers=schedulers,
            admission=admission,
            seed=seed,
            faults=faults,
        )
        jobs = make_jobs(read_trace(trace, format, limit=requests), speed=speed, tenants=tenants, seed=seed)
        with _bars(len(jobs), show=json != _STANDARD_OUTPUT) as progress:
            results = compare(jobs, setting, names, progress=progress)
        if plot is not None:
            _draw(results, plot, title=f"{trace.name} at {speed:g} times its speed on {len(setting.profiles)} workers")
    except TraceError as error:
        raise CommandError(str(error), reason="TRACE") from error
    figures = _figures(results, jobs, wall_s=time.perf_counter() - began, reachable=bound(jobs))
    if json == _STANDARD_OUTPUT:
        print(jsonlib.dumps(figures))
        return
    if json:
        Path(json).write_text(jsonlib.dumps(figures, indent=2) + "\n", encoding="utf-8")
    _show(results)


def _policies(text: str) -> list[str]:
    from downstack.replay.compare import policy_names, queued_names  # noqa: PLC0415

    known = [*policy_names(), *queued_names()]
    names = policy_names() if text == _ALL else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise CommandError(
            f"there is no policy {', '.join(unknown) or text!r}; there are {', '.join(known)}", reason="NO_SUCH_POLICY"
        )
    return names


def _fleet(text: str, default: str, *, kv_blocks: int) -> list[Any]:
    """One profile for each worker of `N[xPROFILE][,…]`."""
    from downstack.replay.simulation import sized  # noqa: PLC0415
    from services.kit.errors import StartupError  # noqa: PLC0415
    from services.worker.profiles import load_profile  # noqa: PLC0415

    found = []
    for part in text.split(","):
        count, _, name = part.strip().partition("x")
        if not count.isdigit() or not int(count):
            message = f"--workers is N[xPROFILE][,…], such as 12xh100-8b,4xl40s-8b, not {text!r}"
            raise CommandError(message, reason="USAGE")
        try:
            found += [sized(load_profile(name or default), kv_blocks=kv_blocks)] * int(count)
        except StartupError as error:
            raise CommandError(str(error), reason="NO_SUCH_PROFILE") from error
    return found


def _setting(
    fleet: Sequence[Any],
    *,
    objectives: tuple[float, float],
    deadline_s: float,
    schedulers: int,
    admission: bool,
    seed: int,
    faults: Path | None,
) -> "Setting":
    from downstack.replay.compare import Setting  # noqa: PLC0415
    from downstack.replay.faults import read_faults  # noqa: PLC0415
    from downstack.replay.measures import Objectives  # noqa: PLC0415
    from downstack.replay.simulation import Timing  # noqa: PLC0415

    return Setting(
        profiles=fleet,
        objectives=Objectives(*objectives),
        schedulers=schedulers,
        admission=admission,
        seed=seed,
        crashes=read_faults(faults, workers=len(fleet)) if faults is not None else (),
        timing=Timing(deadline_s=deadline_s),
    )


def _draw(results: "Sequence[Result]", path: Path, *, title: str) -> None:
    from downstack.replay.plot import draw  # noqa: PLC0415

    draw(results, path, title=title)


def _figures(results: "Sequence[Result]", jobs: "Sequence[Job]", *, wall_s: float, reachable: float) -> dict[str, Any]:
    decisions = sum(len(jobs) for _ in results)
    deciding_s = sum(len(jobs) / result.decisions_per_s for result in results)
    return {
        "policies": {result.policy: {**result.summary.as_dict(), "wall_s": result.wall_s} for result in results},
        "requests": len(jobs),
        "hit_bound": reachable,
        "wall_s": wall_s,
        "decisions_per_s": decisions / deciding_s,
    }


def _show(results: "Sequence[Result]") -> None:
    times = ["TTFT p50 ms", "p99 ms", "TPOT p50 ms"]
    columns = [
        "policy",
        "goodput/s",
        "good %",
        "refused",
        *times,
        "hits %",
        "of bound %",
        "Jain",
        "cost",
        "decisions/s",
    ]
    rows = []
    for result in results:
        one = result.summary
        figures = [one.goodput, 100 * one.good_share, one.refused, one.ttft_p50_ms, one.ttft_p99_ms, one.tpot_p50_ms]
        shares = [100 * one.hit_rate, 100 * one.hit_share_of_bound, one.jain, one.cost]
        texts = [f"{figure:.2f}" if isinstance(figure, float) else str(figure) for figure in [*figures, *shares]]
        rows.append([result.policy, *texts, f"{result.decisions_per_s:.0f}"])
    print_table(columns, rows)


def _bars(total: int, *, show: bool) -> Any:
    """A bar for each policy on standard error; gives the function that moves it."""
    if not show:
        return nullcontext(None)
    return _Bars(total)


class _Bars:
    def __init__(self, total: int) -> None:
        columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._total = total
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[str, int], None]:
        self._progress.start()
        return self._move

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _move(self, name: str, count: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=self._total)
        self._progress.update(self._tasks[name], completed=count)
