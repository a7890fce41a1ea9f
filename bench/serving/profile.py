"""A profile of the simulated engine, of what was measured."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

from services.worker.domain.rates import Rates
from services.worker.domain.sim.sequence import Shape
from services.worker.ports import EngineSpec


def write_profile(
    path: Path, *, model: str, spec: EngineSpec, rates: Rates, price: tuple[float, str], sources: dict[str, str]
) -> None:
    """Writes the file that `services.worker.profiles.load_profile` reads."""
    shape = {field.name: getattr(spec, field.name) for field in fields(Shape)}
    lines = [
        f"# {model} as measured by bench/gpu.py on {datetime.now(UTC).date().isoformat()}.",
        f"model = {json.dumps(model)}",
        *_section("shape", shape),
        *_section("rates", {name: float(f"{value:.4g}") for name, value in asdict(rates).items()}),
        *_section("price", {"per_hour": price[0], "currency": price[1]}),
        *_section("sources", sources),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(name: str, values: Mapping[str, object]) -> list[str]:
    # Strings and numbers are written alike in JSON and in TOML.
    return ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
