"""Which models can answer: the fleet's view of its workers, joined with the tokenizers that this router holds."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.kit.errors import DownstackError, Reason
from services.router.domain.outcome import Price

MODELS_NAMED_MOST = 16
RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What the router needs of one worker.

    `live` is true while the scheduler may still place on it; `adapters` are ids by name.
    """

    worker_id: str
    model: str
    tokenizer_revision: str
    context_tokens: int
    block_size: int
    engine: str
    ready: bool
    live: bool
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model, or one LoRA adapter of a model, as its workers serve it.

    `name` is what a request says, MODEL or MODEL:ADAPTER; `model` is the workers' model, `adapter` the adapter's id.
    """

    name: str
    model: str
    adapter: str
    tokenizer_revision: str
    context_tokens: int
    block_size: int
    engine: str
    ready_workers: int
    price: Price | None


def served_models(workers: Sequence[WorkerView], prices: Mapping[str, Price]) -> dict[str, ServedModel]:
    """The models of the live workers, by name.

    A model whose workers disagree is described by its ready workers first, and among them by the lowest id; its context
    is the shortest one, so that whichever worker is chosen can hold what was promised. Of adapters with one name and
    other weights, the one counts that more workers are ready to answer with.
    """
    groups: dict[tuple[str, str, str], list[WorkerView]] = {}
    for worker in workers:
        for name, adapter in _names(worker) if worker.live else ():
            groups.setdefault((name, worker.model, adapter), []).append(worker)
    found = [
        _describe(name, model, adapter, workers=group, price=prices.get(model))
        for (name, model, adapter), group in groups.items()
    ]
    return {served.name: served for served in sorted(found, key=lambda each: (each.ready_workers, each.adapter))}


def _names(worker: WorkerView) -> Iterable[tuple[str, str]]:
    """What requests can say to reach the worker, each with the adapter's id."""
    return [(worker.model, ""), *((f"{worker.model}:{name}", id_) for name, id_ in worker.adapters.items())]


def model_of(name: str, known: Container[str]) -> str:
    """The model in what a request says: the name itself, or what is before an adapter's name."""
    model, _, adapter = name.rpartition(":")
    return model if name not in known and adapter and model in known else name


def _describe(
    name: str, model: str, adapter: str, *, workers: Sequence[WorkerView], price: Price | None
) -> ServedModel:
    ordered = sorted(workers, key=lambda w: (not w.ready, w.worker_id))
    first = ordered[0]
    alike = [w for w in ordered if w.tokenizer_revision == first.tokenizer_revision]
    return ServedModel(
        name=name,
        model=model,
        adapter=adapter,
        tokenizer_revision=first.tokenizer_revision,
        context_tokens=min(w.context_tokens for w in alike),
        block_size=first.block_size,
        engine=first.engine,
        ready_workers=sum(w.ready for w in alike),
        price=price,
    )


def resolve(name: str, *, served: Mapping[str, ServedModel], revisions: Mapping[str, str]) -> ServedModel:
    """The served model of that name, with a tokenizer that this router holds too.

    Raises MODEL_NOT_FOUND where no router or worker knows it or the two tokenizers differ, ADAPTER_NOT_FOUND where no
    worker of the model holds the adapter, and NO_HEALTHY_WORKER where the router knows the model, but no worker serves
    it now.
    """
    model, base = served.get(name), model_of(name, revisions)
    if base not in revisions:
        raise _not_found(name, f"there is no model {name}", known=usable(served, revisions))
    if model is None and base in served and base != name:
        others = [each for each in usable(served, revisions) if each.model == base and each.adapter]
        sentence = f"no worker of {base} holds the adapter of {name}"
        raise _not_found(name, sentence, known=others, reason=Reason.ADAPTER_NOT_FOUND)
    if model is None:
        raise DownstackError(
            Reason.NO_HEALTHY_WORKER,
            f"no worker serves {name} now",
            metadata={"model": name},
            retry_after_s=RETRY_AFTER_S,
        )
    if model.tokenizer_revision != revisions[base]:
        sentence = (
            f"the workers of {name} use tokenizer {model.tokenizer_revision}, this router {revisions[base]}: "
            "both must load the same model folder"
        )
        raise _not_found(name, sentence, known=())
    return model


def usable(served: Mapping[str, ServedModel], revisions: Mapping[str, str]) -> list[ServedModel]:
    """The models that a request can name now, sorted by name."""
    return [m for _, m in sorted(served.items()) if revisions.get(m.model) == m.tokenizer_revision]


def _not_found(
    name: str, sentence: str, *, known: Sequence[ServedModel], reason: Reason = Reason.MODEL_NOT_FOUND
) -> DownstackError:
    names = ", ".join(m.name for m in known[:MODELS_NAMED_MOST])
    hint = f"; there are: {names}" if names else ""
    return DownstackError(reason, f"{sentence}{hint}", metadata={"model": name})
