"""Commands that ask the router: generate, models, explain."""

import sys
from typing import Annotated

import typer

from downstack.cli.answers import answer_dict, citation_line, facts, stream
from downstack.cli.decisions import print_attempts
from downstack.cli.output import CommandError, as_dict, console, money, print_json, print_table
from downstack.cli.session import DataDirOption, JsonOption, KeyOption, TargetOption, Where
from downstack.cli.session import inference as connect
from downstack.client import Client
from downstack.requests import Options
from downstack.types.v1 import usage_pb2

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Model. Default: the first that is served.")]
SystemOption = Annotated[str, typer.Option("--system", help="Instruction before the conversation.")]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of the answer.")]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")]
CollectionOption = Annotated[
    list[str] | None, typer.Option("--collection", "-c", help="Collection to answer from; may be repeated.")
]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer; - reads it from standard input.")],
    model: ModelOption = "",
    system: SystemOption = "",
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    collection: CollectionOption = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline in seconds.")] = 300.0,
    streamed: Annotated[bool, typer.Option("--stream/--no-stream", help="Show tokens as they come.")] = True,
    target: TargetOption = "",
    api_key: KeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Answer one prompt."""
    text = sys.stdin.read() if prompt == "-" else prompt
    with connect(Where(target=target, api_key=api_key, data_dir=data_dir)) as client:
        options = options_of(
            model or first_model(client), system=system, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        options["collections"] = collection or []
        options["timeout_s"] = timeout
        if json or not streamed:
            answer = client.generate_once(text, **options)
        else:
            answer = client.generate(text, **options)
            stream(answer, write)
    if json:
        print_json(answer_dict(answer))
        return
    print(answer.text if not streamed else "")
    for citation in answer.citations:
        console().print(citation_line(citation), style="cyan", markup=False)
    console().print(facts(answer), style="dim", markup=False)
    console().print(f"request {answer.request_id}", style="dim", markup=False)


def options_of(
    model: str, *, system: str = "", max_tokens: int, temperature: float | None = None, seed: int | None = None
) -> Options:
    """The options that were given, and no others."""
    options = Options(model=model, system=system, max_tokens=max_tokens)
    if temperature is not None:
        options["temperature"] = temperature
    if seed is not None:
        options["seed"] = seed
    return options


def write(text: str) -> None:
    """Show a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def first_model(client: Client) -> str:
    """The model to ask where none was named."""
    served = [model.name for model in client.models() if model.workers]
    if not served:
        raise CommandError("no model is served now; `downstack status` shows the workers", reason="NO_MODEL")
    return served[0]


def models(
    target: TargetOption = "", api_key: KeyOption = "", data_dir: DataDirOption = None, json: JsonOption = False
) -> None:
    """List the models that can be asked."""
    with connect(Where(target=target, api_key=api_key, data_dir=data_dir)) as client:
        found = client.models()
    if json:
        print_json({"models": [as_dict(model) for model in found]})
        return
    rows = []
    for model in found:
        price = model.price
        prices = [
            money(usage_pb2.Cost(nano_units=nano * 1_000_000, currency=price.currency))
            for nano in (price.input_nano, price.cached_nano, price.output_nano)
        ]
        rows.append([model.name, model.engine, str(model.workers), str(model.context_tokens), *prices])
    print_table(
        ["model", "engine", "workers", "context", "input per million", "cached per million", "output per million"], rows
    )


def explain(
    request_id: Annotated[str, typer.Argument(help="The request, as shown after an answer.")],
    target: TargetOption = "",
    api_key: KeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show why a request was placed as it was, and what was billed."""
    with connect(Where(target=target, api_key=api_key, data_dir=data_dir)) as client:
        found = client.explain(request_id)
    if json:
        print_json(as_dict(found))
    else:
        print_attempts(found)
