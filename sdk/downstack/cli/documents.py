"""Commands that ask the retriever: ingest, search."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from downstack.cli.answers import citation_line
from downstack.cli.output import CommandError, as_dict, console, print_json
from downstack.cli.session import DataDirOption, JsonOption, KeyOption, RetrieverOption, Where, retrieval
from downstack.client import Client
from downstack.retrieval.v1 import retrieval_pb2

MAX_DOCUMENT_BYTES = 3 * 1024 * 1024
BATCH_DOCUMENTS = 32
BATCH_BYTES = 8 * 1024 * 1024
_MEDIA_TYPES = {".md": "text/markdown", ".markdown": "text/markdown"}
_READABLE = {".md", ".markdown", ".txt", ".rst", ".text"}
_MODES = {
    "hybrid": retrieval_pb2.SEARCH_MODE_HYBRID,
    "vector": retrieval_pb2.SEARCH_MODE_VECTOR,
    "text": retrieval_pb2.SEARCH_MODE_TEXT,
}


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files, and folders with text and Markdown files.")],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Where they go; made if missing.")],
    private: Annotated[bool, typer.Option(help="A new collection is for you and for whom you grant it.")] = False,
    retriever: RetrieverOption = "",
    api_key: KeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Store documents, ready to be searched and answered from."""
    files = text_files(paths)
    with retrieval(Where(retriever=retriever, api_key=api_key, data_dir=data_dir)) as client:
        client.documents.create_collection(collection, private=private)
        stored = store(client, collection, files, show=not json)
    if json:
        print_json(as_dict(stored))
        return
    fresh = stored.documents - stored.unchanged
    console().print(
        f"{stored.documents} documents in {collection}: {fresh} stored in {stored.chunks} chunks, "
        f"{stored.unchanged} unchanged",
        markup=False,
    )


def text_files(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """Every file to store with its document id: files as named, folders by their text and Markdown files.

    Raises:
        CommandError: A path does not exist, is too long for one document, or nothing was found.
    """
    found: dict[Path, str] = {}
    for path in paths:
        if not path.exists():
            raise CommandError(f"{path} does not exist", reason="NO_SUCH_FILE")
        if path.is_file():
            found[path] = path.name
            continue
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix.lower() in _READABLE:
                found[file] = str(file.relative_to(path))
    if not found:
        raise CommandError("there are no text or Markdown files there", reason="NO_DOCUMENTS")
    for file in found:
        if not 0 < file.stat().st_size <= MAX_DOCUMENT_BYTES:
            raise CommandError(f"{file} must have 1 byte to 3 MiB", reason="DOCUMENT_SIZE")
    return list(found.items())


def store(
    client: Client, collection: str, files: list[tuple[Path, str]], *, show: bool
) -> retrieval_pb2.IngestResponse:
    """Store the files in batches, with a progress bar."""
    total = retrieval_pb2.IngestResponse()
    columns = (TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console())
    bar = progress.add_task("ingest", total=len(files))
    with progress if show and console().is_terminal else nullcontext():
        for batch in _batches(files):
            response = client.documents.ingest(collection, map(_document, batch))
            total.documents += response.documents
            total.unchanged += response.unchanged
            total.chunks += response.chunks
            total.results.extend(response.results)
            progress.advance(bar, len(batch))
    return total


def _batches(files: list[tuple[Path, str]]) -> Iterator[list[tuple[Path, str]]]:
    batch: list[tuple[Path, str]] = []
    size = 0
    for file in files:
        bytes_of_file = file[0].stat().st_size
        if batch and (len(batch) == BATCH_DOCUMENTS or size + bytes_of_file > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += bytes_of_file
    yield batch


def _document(file: tuple[Path, str]) -> retrieval_pb2.DocumentInput:
    path, document_id = file
    return retrieval_pb2.DocumentInput(
        document_id=document_id,
        title=path.name,
        uri=document_id,
        media_type=_MEDIA_TYPES.get(path.suffix.lower(), "text/plain"),
        content=path.read_bytes(),
    )


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    collection: Annotated[list[str], typer.Option("--collection", "-c", help="Where; may be repeated.")],
    top_k: Annotated[int, typer.Option(min=1, max=100, help="Number of passages.")] = 5,
    mode: Annotated[str, typer.Option(help="hybrid, vector or text.")] = "hybrid",
    retriever: RetrieverOption = "",
    api_key: KeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Find passages."""
    if mode not in _MODES:
        raise typer.BadParameter(f"--mode is hybrid, vector or text, not {mode!r}")
    request = retrieval_pb2.SearchRequest(query=query, collections=collection, top_k=top_k, mode=_MODES[mode])
    with retrieval(Where(retriever=retriever, api_key=api_key, data_dir=data_dir)) as client:
        hits = client.documents.search(request)
    if json:
        print_json({"hits": [as_dict(hit) for hit in hits]})
        return
    out = console()
    for hit in hits:
        out.print(f"{hit.citation.score:.4f} {citation_line(hit.citation)}", style="cyan", markup=False)
        out.print(" ".join(hit.citation.text.split()), markup=False)
    if not hits:
        out.print("Nothing was found.", style="dim")
