"""Which models can answer: the fleet's view of its workers, joined with the tokenizers that this router holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.kit.errors import DownstackError, Reason
from services.router.domain.outcome import Price

MODELS_NAMED_MOST = 16
RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What the router needs of one worker. `live` is true while the scheduler may still place on it."""

    worker_id: str
    model: str
    tokenizer_revision: str
    context_tokens: int
    block_size: int
    engine: str
    ready: bool
    live: bool


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as its workers serve it."""

    name: str
    tokenizer_revision: str
    context_tokens: int
    block_size: int
    engine: str
    ready_workers: int
    price: Price | None


def served_models(workers: Sequence[WorkerView], prices: Mapping[str, Price]) -> dict[str, ServedModel]:
    """The models of the live workers, by name.

    A model whose workers disagree is described by its ready workers first, and among them by the lowest id; its context
    is the shortest one, so that whichever worker is chosen can hold what was promised.
    """
    by_model: dict[str, list[WorkerView]] = {}
    for worker in workers:
        if worker.live:
            by_model.setdefault(worker.model, []).append(worker)
    return {name: _describe(name, group, prices.get(name)) for name, group in sorted(by_model.items())}


def _describe(name: str, workers: Sequence[WorkerView], price: Price | None) -> ServedModel:
    ordered = sorted(workers, key=lambda w: (not w.ready, w.worker_id))
    first = ordered[0]
    alike = [w for w in ordered if w.tokenizer_revision == first.tokenizer_revision]
    return ServedModel(
        name=name,
        tokenizer_revision=first.tokenizer_revision,
        context_tokens=min(w.context_tokens for w in alike),
        block_size=first.block_size,
        engine=first.engine,
        ready_workers=sum(w.ready for w in alike),
        price=price,
    )


def resolve(name: str, *, served: Mapping[str, ServedModel], revisions: Mapping[str, str]) -> ServedModel:
    """The served model of that name, with a tokenizer that this router holds too.

    Raises MODEL_NOT_FOUND where no router or worker knows it or the two tokenizers differ, and NO_HEALTHY_WORKER where
    the router knows it, but no worker serves it now.
    """
    model = served.get(name)
    if name not in revisions:
        raise _not_found(name, f"there is no model {name}", known=usable(served, revisions))
    if model is None:
        raise DownstackError(
            Reason.NO_HEALTHY_WORKER,
            f"no worker serves {name} now",
            metadata={"model": name},
            retry_after_s=RETRY_AFTER_S,
        )
    if model.tokenizer_revision != revisions[name]:
        sentence = (
            f"the workers of {name} use tokenizer {model.tokenizer_revision}, this router {revisions[name]}: "
            "both must load the same model folder"
        )
        raise _not_found(name, sentence, known=())
    return model


def usable(served: Mapping[str, ServedModel], revisions: Mapping[str, str]) -> list[ServedModel]:
    """The models that a request can name now, sorted by name."""
    return [m for _, m in sorted(served.items()) if revisions.get(m.name) == m.tokenizer_revision]


def _not_found(name: str, sentence: str, *, known: Sequence[ServedModel]) -> DownstackError:
    names = ", ".join(m.name for m in known[:MODELS_NAMED_MOST])
    hint = f"; there are: {names}" if names else ""
    return DownstackError(Reason.MODEL_NOT_FOUND, f"{sentence}{hint}", metadata={"model": name})
