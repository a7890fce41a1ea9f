"""The price list."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.scheduler.domain.request import Price


@dataclass(frozen=True, slots=True, eq=False)
class PriceList:
    """Prices by model, with one for all others."""

    by_model: Mapping[str, Price]
    default: Price

    def of(self, model: str) -> Price:
        return self.by_model.get(model, self.default)
