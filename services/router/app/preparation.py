"""Everything before the placement: validate, resolve the model, retrieve, render, tokenize, hash."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.kit.blocks import chain_hashes, root_hash
from services.kit.clock import Clock
from services.kit.errors import Code, DownstackError, Reason
from services.router.app.call import Run
from services.router.domain.context import output_limit
from services.router.domain.models import ServedModel, model_of, resolve, usable
from services.router.domain.prompt import Passage, assemble, assemble_text, fence, number, search_query
from services.router.domain.request import GenerationSpec, Retrieval, Sampling
from services.router.domain.secrets import cache_salt, prompt_hash
from services.router.domain.validation import validate
from services.router.ports import FleetPort, PlaceOrder, PromptModel, RetrieverPort

# The caller's own mistakes are told even where retrieval is not required: going on without would hide them.
_CALLERS_OWN = frozenset({Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED})


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that can be placed."""

    model: ServedModel
    token_ids: Sequence[int]
    passages: tuple[Passage, ...]
    sampling: Sampling
    prompt_hash: str
    order: PlaceOrder


@dataclass(frozen=True, slots=True)
class Counted:
    """The length of a prompt. `context_tokens` is 0 where no worker serves the model now."""

    token_ids: Sequence[int]
    context_tokens: int


class Preparation:
    """Prepares requests for the scheduler."""

    def __init__(
        self,
        *,
        fleet: FleetPort,
        models: Mapping[str, PromptModel],
        retriever: RetrieverPort | None,
        clock: Clock,
        secret: bytes,
        retrieval_budget_s: float,
    ) -> None:
        self._fleet = fleet
        self._models = models
        self._revisions = {name: model.revision for name, model in models.items()}
        self._retriever = retriever
        self._clock = clock
        self._secret = secret
        self._retrieval_budget_s = retrieval_budget_s

    async def prepare(self, run: Run) -> Prepared:
        """Turn the request into counts, hashes and tokens. All refusals but the scheduler's come from here."""
        spec = run.spec
        validate(spec)
        served = resolve(spec.model, served=self._fleet.served(), revisions=self._revisions)
        run.model = served.name
        passages = await self._retrieve(run, spec.retrieval) if spec.retrieval else ()
        token_ids = await self._tokens(spec, passages)
        run.progress.prompt_tokens = len(token_ids)
        if passages:
            run.progress.retrieved_tokens = await self._models[served.model].count(fence(passages))
        limit = output_limit(
            len(token_ids),
            context_tokens=served.context_tokens,
            max_tokens=spec.sampling.max_tokens,
            model=served.name,
        )
        tenant_id = run.call.identity.tenant_id
        return Prepared(
            model=served,
            token_ids=token_ids,
            passages=passages,
            sampling=replace(spec.sampling, max_tokens=limit),
            prompt_hash=prompt_hash(self._secret, tenant_id=tenant_id, token_ids=token_ids),
            order=self._order(run, served, token_ids, limit),
        )

    async def count(self, spec: GenerationSpec) -> Counted:
        """Render and tokenize without running. Retrieval is not run."""
        validate(spec)
        served = self._fleet.served().get(spec.model)
        if model_of(spec.model, self._models) not in self._models:
            resolve(spec.model, served=self._fleet.served(), revisions=self._revisions)
        return Counted(
            token_ids=await self._tokens(spec, ()),
            context_tokens=served.context_tokens if served else 0,
        )

    def models(self) -> list[ServedModel]:
        """The models that a request can name now, sorted by name."""
        return usable(self._fleet.served(), self._revisions)

    async def _tokens(self, spec: GenerationSpec, passages: Sequence[Passage]) -> list[int]:
        model = self._models[model_of(spec.model, self._models)]
        if spec.messages:
            return await model.chat_tokens(assemble(spec.messages, passages), tools=spec.tools)
        return await model.text_tokens(assemble_text(spec.prompt, passages))

    async def _retrieve(self, run: Run, retrieval: Retrieval) -> tuple[Passage, ...]:
        """The marked passages. Where retrieval fails and is not required, none, and the run is marked."""
        if self._retriever is None:
            raise DownstackError(Reason.UNSUPPORTED_FEATURE, "this router has no retriever")
        budget_s = self._retrieval_budget_s if retrieval.budget_s is None else retrieval.budget_s
        began_s = self._clock.monotonic()
        timeout_s = min(budget_s, run.call.remaining_s(began_s))
        try:
            found = await self._retriever.prepare(
                run.call.identity,
                query=search_query(run.spec),
                collections=retrieval.collections,
                top_k=retrieval.top_k,
                timeout_s=timeout_s,
            )
        except DownstackError as error:
            if retrieval.required or error.code in _CALLERS_OWN:
                raise _retrieval_failed(error, budget_s) from error
            run.degraded = True
            return ()
        finally:
            run.progress.prepare_s = self._clock.monotonic() - began_s
        return number(found)

    def _order(self, run: Run, served: ServedModel, token_ids: Sequence[int], limit: int) -> PlaceOrder:
        spec = run.spec
        salt = cache_salt(self._secret, tenant_id=run.call.identity.tenant_id)
        root = root_hash(
            model=served.model, tokenizer_revision=served.tokenizer_revision, adapter=served.adapter, cache_salt=salt
        )
        return PlaceOrder(
            request_id=run.call.request_id,
            attempt=1,
            name=served.name,
            model=served.model,
            adapter=served.adapter,
            prompt_tokens=len(token_ids),
            block_size=served.block_size,
            block_hashes=chain_hashes(root, token_ids, served.block_size),
            max_output_tokens=limit,
            cache_salt=salt,
            retrieved_tokens=run.progress.retrieved_tokens,
            priority=spec.priority,
            conversation_id=spec.conversation_id,
            labels=spec.labels,
            value=spec.value,
            max_cost=spec.max_cost,
            min_quality=spec.min_quality,
            answers=spec.sampling.n or 1,
        )


def _retrieval_failed(error: DownstackError, budget_s: float) -> DownstackError:
    if error.code != Code.DEADLINE_EXCEEDED:
        return error
    sentence = f"retrieval did not end within its budget of {budget_s:g} s, and the request requires it"
    return DownstackError(Reason.DEPENDENCY_UNAVAILABLE, sentence, metadata={"dependency": "retriever"})
