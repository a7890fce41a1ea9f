"""Makes what the router's unit tests need."""

from typing import Any

from services.router.domain.models import WorkerView
from services.router.domain.prompt import Passage
from services.router.domain.request import GenerationSpec, Message, Role, Sampling


def user(content: str = "What is it?") -> Message:
    return Message(role=Role.USER, content=content)


def request(**fields: Any) -> GenerationSpec:
    """A valid request; `sampling` may be given as a dictionary."""
    sampling = fields.pop("sampling", {})
    given = {"model": "m", "messages": (user(),), "sampling": Sampling(**sampling)}
    return GenerationSpec(**(given | fields))


def passage(document_id: str = "d", *, text: str = "text", **fields: Any) -> Passage:
    given = {"collection": "c", "version": 1, "title": "", "uri": "", "start": 0, "end": 4, "score": 1.0}
    return Passage(document_id=document_id, text=text, **(given | fields))


def worker(worker_id: str = "w", **fields: Any) -> WorkerView:
    given = {
        "model": "m",
        "tokenizer_revision": "r1",
        "context_tokens": 100,
        "block_size": 16,
        "engine": "sim",
        "ready": True,
        "live": True,
    }
    return WorkerView(worker_id=worker_id, **(given | fields))
