"""Measures one placement decision, beside Dynamo's on the same data where its package is at hand.

Prints one JSON line last. Every part runs in a process of its own, one after the other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import machine
from bench.placing.data import Shape, make

_HERE = Path(__file__).parent
_PART_S = 1_800.0


def main() -> int:
    """Measures, prints a table for people, and the figures as one line of JSON."""
    options = _options()
    shape = Shape(
        workers=options.workers,
        blocks=options.blocks,
        prompt_blocks=options.prompt_tokens // options.block_size,
        block_size=options.block_size,
        rounds=options.rounds,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.npz")
        resident = make(shape, data)
        found = {"ours": _run([sys.executable, "-m", "bench.placing.ours"], data)}
        for part in ("radix_tree", "selection"):
            found[f"dynamo_{part}"] = _dynamo(options.dynamo_python, part, data)
    figures = {name: None if isinstance(each, str) else each for name, each in found.items()}
    reasons = {name: each for name, each in found.items() if isinstance(each, str)}
    asked = {name: each for name, each in vars(options).items() if name not in {"dynamo_python", "json"}}
    if not options.json:
        _print(found)
    print(json.dumps({**figures, "absent": reasons, "shape": {**asked, "resident": resident}, "machine": machine()}))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.decision", description=__doc__)
    parser.add_argument("--workers", type=int, default=1_000, help="workers connected (1000)")
    parser.add_argument("--blocks", type=int, default=1_000_000, help="resident blocks, all workers together (1000000)")
    parser.add_argument("--prompt-tokens", type=int, default=8_192, help="length of each prompt (8192)")
    parser.add_argument("--block-size", type=int, default=16, help="tokens of a block (16)")
    parser.add_argument("--rounds", type=int, default=2_000, help="decisions measured (2000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the data (1)")
    parser.add_argument("--dynamo-python", default="", help="an interpreter that can import ai-dynamo-runtime")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args()


def _dynamo(python: str, part: str, data: Path) -> dict[str, Any] | str:
    """The figures of a part of Dynamo, or why there are none."""
    if not python:
        return "no --dynamo-python was given"
    probe = subprocess.run([python, "-c", "import dynamo.llm, numpy"], capture_output=True, check=False)
    if probe.returncode:
        return "the interpreter of --dynamo-python cannot import ai-dynamo-runtime and numpy"
    return _run([python, str(_HERE / "placing" / "theirs.py"), part], data)


def _run(command: Sequence[str], data: Path) -> dict[str, Any] | str:
    done = subprocess.run(
        [*command, str(data)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PART_S,
        env={**os.environ, "DYN_LOG": "error"},
    )
    if done.returncode:
        return f"it failed: {' '.join(done.stderr.strip().splitlines()[-1:])}"
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _print(found: dict[str, dict[str, Any] | str]) -> None:
    for name, figures in found.items():
        print(name)
        for key, figure in (figures if isinstance(figures, dict) else {"absent": figures}).items():
            print(f"  {key:24} {figure:>12.1f}" if isinstance(figure, float) else f"  {key:24} {figure:>12}")


if __name__ == "__main__":
    sys.exit(main())
