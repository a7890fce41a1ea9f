"""The interactive conversation."""

from contextlib import suppress
from uuid import uuid4

from rich.console import Console

from downstack.cli.answers import citation_line, facts, stream
from downstack.cli.inference import (
    CollectionOption,
    MaxTokensOption,
    ModelOption,
    SystemOption,
    TemperatureOption,
    first_model,
    options_of,
    write,
)
from downstack.cli.output import console, print_json
from downstack.cli.session import DataDirOption, JsonOption, KeyOption, TargetOption, Where
from downstack.cli.session import inference as connect
from downstack.client import Client
from downstack.errors import ApiError
from downstack.requests import Options

_HELP = "Ask something. /new starts over, /quit ends; Ctrl-C stops an answer."


def chat(
    model: ModelOption = "",
    system: SystemOption = "",
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = None,
    collection: CollectionOption = None,
    target: TargetOption = "",
    api_key: KeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Talk to a model; its answers are part of the conversation."""
    with connect(Where(target=target, api_key=api_key, data_dir=data_dir)) as client:
        options = options_of(
            model or first_model(client), system=system, max_tokens=max_tokens, temperature=temperature
        )
        options["collections"] = collection or []
        options["conversation_id"] = uuid4().hex
        if not json:
            console().print(f"{options['model']}. {_HELP}", style="dim", markup=False)
        with suppress(EOFError):
            _converse(client, options, console(), json=json)


def _converse(client: Client, options: Options, out: Console, *, json: bool) -> None:
    turns: list[dict[str, str]] = []
    while True:
        said = input("" if json else "\n> ").strip()
        if said == "/quit":
            return
        if said == "/new":
            turns = []
        elif said:
            asked = [*turns, {"role": "user", "content": said}]
            text = _answer(client, asked, options, out, json=json)
            # A question without an answer is not part of the conversation.
            turns = [*asked, {"role": "assistant", "content": text}] if text else turns


def _answer(client: Client, turns: list[dict[str, str]], options: Options, out: Console, *, json: bool) -> str:
    answer = client.generate(turns, **options)
    try:
        stream(answer, (lambda _: None) if json else write)
    except KeyboardInterrupt:
        answer.cancel()
    except ApiError as error:
        out.print(f"\n{error} ({error.reason})", style="red", markup=False)
        return ""
    if json:
        print_json({"text": answer.text, "facts": facts(answer), "request_id": answer.request_id})
        return answer.text
    print()
    for citation in answer.citations:
        out.print(citation_line(citation), style="cyan", markup=False)
    out.print(facts(answer), style="dim", markup=False)
    return answer.text
