"""Choose how the embeddings are compared: all of them, or along the index."""

from dataclasses import dataclass
from enum import StrEnum


class Scan(StrEnum):
    """How candidates are found."""

    EXACT = "exact"
    HNSW = "hnsw"


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """A choice and the numbers that it rests on."""

    scan: Scan
    candidates: int
    reason: str


def choose_scan(*, candidates: int, exact_max: int) -> ScanPlan:
    """Exact while `candidates` (chunks that pass the collection and metadata filters) are at most `exact_max`.

    The index of a tenant orders all of its chunks and filters afterwards, so a filter that keeps few of them makes the
    index read far, or return too little. Below the bound, comparing every candidate is both faster and complete.
    """
    if candidates <= exact_max:
        return ScanPlan(Scan.EXACT, candidates, f"{candidates} candidates are at most {exact_max}")
    return ScanPlan(Scan.HNSW, candidates, f"{candidates} candidates are more than {exact_max}")
