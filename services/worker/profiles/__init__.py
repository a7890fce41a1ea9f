"""Profiles of devices with a model, for the simulated engine: how large, how fast and how dear they are."""

import tomllib
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from services.kit.errors import StartupError
from services.worker.domain.rates import Rates
from services.worker.domain.sim.sequence import Shape

_NANO = 10**9


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of worker.

    Attributes:
        name: The profile's file name without its ending.
        model: The model whose figures these are.
        price_per_hour_nano: In 1e-9 of the currency's unit.
        sources: Where the figures come from, by group.
    """

    name: str
    model: str
    shape: Shape
    rates: Rates
    price_per_hour_nano: int
    currency: str
    sources: dict[str, str]


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def load_profile(name_or_path: str) -> Profile:
    """A profile by its name, or by the path of a file, which ends in `.toml`.

    Raises:
        StartupError: There is none, or it is not one.
    """
    named = name_or_path in profile_names()
    path = Path(__file__).with_name(f"{name_or_path}.toml") if named else Path(name_or_path).expanduser()
    if not named and (path.suffix != ".toml" or not path.is_file()):
        raise StartupError(
            f"There is no profile {name_or_path!r}: known are {', '.join(profile_names())}, and paths of .toml files."
        )
    try:
        return _profile(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise StartupError(f"The profile {str(path)!r} cannot be read: {error}.") from None


def _profile(name: str, content: dict[str, Any]) -> Profile:
    price = Decimal(str(content["price"]["per_hour"]))
    return Profile(
        name=name,
        model=str(content["model"]),
        shape=Shape(**_numbers(content["shape"], of=Shape, kind=int)),
        rates=Rates(**_numbers(content["rates"], of=Rates, kind=float)),
        price_per_hour_nano=int(price * _NANO),
        currency=str(content["price"]["currency"]),
        sources={str(group): str(source) for group, source in content["sources"].items()},
    )


def _numbers(table: dict[str, Any], *, of: type[Shape | Rates], kind: type[int | float]) -> dict[str, Any]:
    """The table's numbers; every field must be there, and nothing else."""
    wanted = {field.name for field in fields(of)}
    if table.keys() != wanted:
        raise ValueError(f"[{of.__name__.lower()}] has {sorted(table)} and needs {sorted(wanted)}")
    wrong = [key for key, value in table.items() if isinstance(value, bool) or not isinstance(value, (int, kind))]
    if wrong or any(value < 0 for value in table.values()):
        raise ValueError(f"{', '.join(wrong) or 'a number'} in [{of.__name__.lower()}] is not a number of at least 0")
    return dict(table)
