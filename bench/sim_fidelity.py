"""Holds the simulated engine against vLLM's own scheduler, and prints how far they agree; one JSON line comes last."""

import argparse
import json
import platform
import sys
import time
from datetime import UTC, datetime

from bench.fidelity.figures import Figures, compare
from bench.fidelity.workload import workload

_SHOWN = 10
_LONGEST_LINE = 300


def main() -> int:
    """Runs the comparison. Exits with 1 where a workload does not agree exactly."""
    options = _options()
    # vLLM takes seconds to import, and --help needs none of it.
    from vllm import __version__  # noqa: PLC0415

    from bench.fidelity.vllm_scheduler import VllmEngine, VllmEngineAhead  # noqa: PLC0415

    began = time.monotonic()
    seeds = range(options.first, options.first + options.seeds)
    reference, depth = (VllmEngineAhead, 2) if options.ahead else (VllmEngine, 1)
    figures = compare((workload(seed) for seed in seeds), reference, depth=depth)
    if not options.json:
        _print(figures)
    measured = {
        "bench": "sim_fidelity",
        "reference": "AsyncScheduler" if options.ahead else "Scheduler",
        **figures.as_json(),
        "first_seed": options.first,
        "seconds": round(time.monotonic() - began, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "vllm": __version__,
        "python": platform.python_version(),
    }
    print(json.dumps(measured))
    return 0 if figures.agree == figures.seeds else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sim_fidelity",
        description=(
            "Drives vLLM's scheduler and the simulated engine through the same seeded workloads, step by step, and "
            "compares cached tokens, order of first scheduling, preemptions, KV events, and everything else a step "
            "shows. Needs vLLM, but no weights, no GPU and no network. Exits with 1 where they do not agree exactly."
        ),
    )
    parser.add_argument("--seeds", type=_at_least_one, default=200, help="the number of workloads (default: 200)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--ahead",
        action="store_true",
        help="both schedule a step while the one before it is computed (vLLM's AsyncScheduler)",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args()


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return int(text)


def _print(figures: Figures) -> None:
    outcome = figures.as_json()
    print(f"{figures.agree} of {figures.seeds} workloads agree exactly.")
    for title in ("agree_by_kind", "agree_by_aspect", "covered"):
        print(f"\n{title.replace('_', ' ')}")
        rows = outcome[title]
        assert isinstance(rows, dict)
        for name, value in rows.items():
            print(f"  {name.replace('_', ' '):28}{value:>10}")
    for seed, found in list(figures.explained.items())[:_SHOWN]:
        print(f"\nseed {seed} differs")
        for aspect, difference in found.items():
            print(f"  {aspect}: {difference}"[:_LONGEST_LINE])
    print()


if __name__ == "__main__":
    sys.exit(main())
