"""The steps of the demonstration. Each shows something and checks it against what the system says of itself."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from downstack.admin.v1 import admin_pb2
from downstack.cli import events
from downstack.cli.answers import citation_line, facts, stream
from downstack.cli.decisions import print_decision
from downstack.cli.documents import store, text_files
from downstack.cli.ledger import print_rows
from downstack.cli.output import as_dict, print_table
from downstack.client import Client, Generation
from downstack.local.config import Engine
from downstack.local.folder import DataFolder
from downstack.local.state import RunState
from downstack.requests import Options
from downstack.scheduler.v1 import ledger_pb2

_COLLECTION = "docs"
_SETTLE_S = 30.0
_POLL_S = 0.2
_MAX_TOKENS = 48
_SYSTEM = (
    "You answer questions of engineers who run language models in production. "
    "Answer in one short sentence, in plain words, and say nothing that you do not know. "
    "These are the words of this system, and you use them as they are meant here. "
    "A request is what a caller asks. A prompt is the text that the model reads, and it is cut into tokens. "
    "A block is a fixed number of tokens, and its hash stands for itself and for all blocks before it. "
    "A prefix is what two prompts share at their beginning, and a worker that holds it in its cache skips its work. "
    "A worker is one engine with one model. A fleet is all workers. "
    "A lease is the right to run one request on one worker, and a ticket is the signed proof of it. "
    "A decision says which workers were considered for a request, which one was chosen, and why. "
    "The router takes requests, the scheduler places them, the worker runs them, the retriever finds passages. "
    "The ledger has one row for each lease: tokens in, tokens from the cache, tokens out, and the cost. "
    "Events carry what happened from each service to everybody who wants to know, through Kafka. "
    "A tenant is an account, and nothing of one tenant is ever seen by another one. "
    "When you are asked about anything else, answer it briefly all the same."
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that was claimed, whether it held, and what was seen."""

    name: str
    ok: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tour:
    """The steps, in the order of their methods; each returns its checks. Use it in a `with`."""

    def __init__(self, folder: DataFolder, state: RunState, docs: Path, out: Console) -> None:
        self._folder = folder
        self._state = state
        self._docs = docs
        self._out = out
        self._model = state.models[0]
        self._answers: list[Generation] = []
        self._offsets_before: Mapping[str, int] = {}
        self._client: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client:
            self._client.close()

    def create_account(self) -> list[Check]:
        tenant = f"demo-{token_hex(4)}"
        self._say(f"A tenant and a key: {tenant}")
        with Client.connect(self._state.endpoints["router"], api_key=self._folder.admin_key()) as operator:
            operator.admin.create_tenant(tenant)
            request = admin_pb2.CreateApiKeyRequest(tenant=tenant, name="demo", principal="demo")
            created = operator.admin.create_key(request)
        ends = self._state.endpoints
        self._client = Client.connect(
            ends["router"], api_key=created.secret, retriever=ends["retriever"], scheduler=ends["scheduler"]
        )
        self._offsets_before = self._offsets()
        served = {model.name for model in self._client.models()}
        detail = f"key {created.key.key_id} may use {', '.join(sorted(served))}"
        return [Check(name="a new tenant's key works", ok=self._model in served, detail=detail)]

    def ingest(self) -> list[Check]:
        self._say(f"The documents in {self._docs}/")
        files = text_files([self._docs])
        self._connected.documents.create_collection(_COLLECTION)
        stored = store(self._connected, _COLLECTION, files, show=not self._out.quiet)
        detail = f"{stored.documents} of {len(files)} documents in {stored.chunks} chunks"
        ok = stored.documents == len(files) and stored.chunks >= len(files)
        return [Check(name="the documents are stored", ok=ok, detail=detail)]

    def ask_plainly(self) -> list[Check]:
        answer = self._ask("What is the capital of France?")
        if self._state.engine == Engine.VLLM:
            return [Check(name="the answer is right", ok="Paris" in answer.text, detail=answer.text.strip()[:60])]
        detail = f"{len(answer.text)} characters of simulated text"
        return [Check(name="an answer was streamed", ok=bool(answer.text), detail=detail)]

    def ask_twice(self) -> list[Check]:
        first = self._ask("What is a lease?", system=_SYSTEM)
        second = self._ask("What does the router do?", system=_SYSTEM)
        prompt = second.usage.input_total if second.usage else 0
        detail = f"{second.cached_tokens} of {prompt} prompt tokens, {first.cached_tokens} in the first question"
        return [Check(name="a shared prompt is computed once", ok=bool(second.cached_tokens), detail=detail)]

    def ask_with_passages(self) -> list[Check]:
        answer = self._ask("Which part of Downstack keeps the documents?", collections=[_COLLECTION])
        cited = {citation.document_id for citation in answer.citations}
        detail = f"{len(answer.citations)} passages of {', '.join(sorted(cited)) or 'no document'}"
        return [Check(name="an answer rests on cited passages", ok=bool(cited), detail=detail)]

    def explain(self) -> list[Check]:
        self._say("The decision for the question before, as it is on record")
        found = self._connected.explain(self._answers[2].request_id)
        for attempt in found.attempts:
            self._quietly(lambda attempt=attempt: print_decision(attempt.decision))
        reasons = [attempt.decision.reason for attempt in found.attempts]
        return [Check(name="the decision is on record", ok=any(reasons), detail="; ".join(reasons))]

    def read_ledger(self) -> list[Check]:
        self._say("The ledger")
        rows = self._settled_rows()
        self._quietly(lambda: print_rows(rows))
        told = {answer.request_id: as_dict(answer.cost) for answer in self._answers if answer.cost}
        billed = {row.request_id: as_dict(row.cost) for row in rows}
        counts = f"{len(rows)} rows for {len(self._answers)} requests"
        return [
            Check(name="the ledger has one row for each request", ok=len(rows) == len(self._answers), detail=counts),
            Check(
                name="it has the costs that were told", ok=bool(told) and told == billed, detail=f"{len(told)} costs"
            ),
        ]

    def read_offsets(self) -> list[Check]:
        self._say("Kafka's offsets")
        now = self._offsets()
        rows = [[topic, str(self._offsets_before.get(topic, 0)), str(end)] for topic, end in now.items()]
        self._quietly(lambda: print_table(["topic", "before", "now"], rows))
        grown = {topic: now[topic] - self._offsets_before.get(topic, 0) for topic in now}
        usage, audit = (grown[events.TOPICS[name][0]] for name in ("usage", "audit"))
        enough = usage >= len(self._answers) and audit >= len(self._answers)
        return [Check(name="the events are on Kafka", ok=enough, detail=f"{usage} of usage, {audit} of audit")]

    @property
    def _connected(self) -> Client:
        assert self._client
        return self._client

    def _ask(self, question: str, *, system: str = "", collections: tuple[str, ...] | list[str] = ()) -> Generation:
        self._say(question)
        options = Options(
            model=self._model, system=system, collections=collections, max_tokens=_MAX_TOKENS, temperature=0
        )
        answer = self._connected.generate(question, **options)
        stream(answer, lambda text: self._out.print(text, end="", markup=False))
        self._out.print()
        for citation in answer.citations:
            self._out.print(citation_line(citation), style="cyan", markup=False)
        self._out.print(facts(answer), style="dim", markup=False)
        if answer.decision:
            self._out.print(f"Decision: {answer.decision.reason}", style="dim", markup=False)
        self._answers.append(answer)
        return answer

    def _settled_rows(self) -> list[ledger_pb2.UsageRow]:
        """The ledger's rows, once they are there: they come through Kafka."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            rows = list(self._connected.ledger.rows(ledger_pb2.ListUsageRequest()))
            if len(rows) >= len(self._answers) or time.monotonic() > deadline:
                return rows
            time.sleep(_POLL_S)

    def _offsets(self) -> dict[str, int]:
        return asyncio.run(events.end_offsets(self._state.endpoints["kafka"]))

    def _say(self, title: str) -> None:
        self._out.print(f"\n{title}", style="bold", markup=False)

    def _quietly(self, show: Any) -> None:
        if not self._out.quiet:
            show()
