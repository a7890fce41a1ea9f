"""LoRA adapters as files: a folder in PEFT's layout, checked before an engine sees it."""

import hashlib
import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from services.kit.errors import DownstackError, Reason
from services.worker.domain.adapters import Adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 16 << 20
_MAX_WEIGHTS_BYTES = 8 << 30
_BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2}
_TENSOR = re.compile(r"(base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_CHUNK = 1 << 20

_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class AdapterFolder:
    """Where adapters come from.

    Attributes:
        root: The folder below which calls may name one. None: calls may name none.
        max_rank: The highest rank.
        model: The folder of the model that they belong to. None, or without safetensors: their sizes are not checked.
    """

    root: Path | None = None
    max_rank: int = 16
    model: Path | None = None

    def find(self, path: str) -> Path:
        """A folder by its path below the root, and not outside it by way of `..` or a link.

        Raises:
            DownstackError: METHOD_DISABLED without a root, PARAM_OUT_OF_RANGE.
        """
        if self.root is None:
            raise DownstackError(Reason.METHOD_DISABLED, "This worker was started without a folder of adapters.")
        root = self.root.resolve()
        try:
            found = (root / path).resolve()
        except (OSError, ValueError):
            found = root
        if found == root or not found.is_relative_to(root):
            raise _damaged("must lead to a folder below the folder of adapters")
        return found

    def read(self, name: str, folder: Path) -> Adapter:
        """The adapter of that name in a folder. Reads it whole, for its revision.

        Weights other than safetensors are not looked at: loading them would run code.

        Raises:
            DownstackError: PARAM_OUT_OF_RANGE (a wrong name, no such folder, damaged files), UNSUPPORTED_FEATURE
                (another kind of adapter, one of a higher rank, or of another model).
        """
        if not _NAME.fullmatch(name):
            raise DownstackError(Reason.PARAM_OUT_OF_RANGE, "name: must be 1 to 64 of letters, digits and `._-`")
        try:
            rank = _rank(folder / CONFIG)
            if rank > self.max_rank:
                raise _unsupported(f"its rank is {rank}; at most {self.max_rank} is possible here")
            tensors = _weights(folder / WEIGHTS, rank=rank)
            if self.model is not None:
                _check_sizes(tensors, _model_shapes(self.model))
            revision = _revision(folder)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise _damaged(_sentence(error)) from None
        return Adapter(name=name, id=f"{name}@{revision}", rank=rank, path=str(folder))


def _rank(path: Path) -> int:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise _damaged(f"{path.name} is larger than {_MAX_CONFIG_BYTES} bytes")
    config: Any = json.loads(path.read_bytes())
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise _unsupported("it is no LoRA adapter")
    if config.get("bias", "none") != "none" or config.get("use_dora") or config.get("modules_to_save"):
        raise _unsupported("it changes more than low-rank matrices can (bias, DoRA or whole modules)")
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise _damaged(f"r in {path.name} must be a number of at least 1")
    return rank


def _weights(path: Path, *, rank: int) -> _Shapes:
    """The matrices in a file: all of that rank, and as many bytes as they take."""
    size = path.stat().st_size
    if size > _MAX_WEIGHTS_BYTES:
        raise _damaged(f"{path.name} is larger than {_MAX_WEIGHTS_BYTES} bytes")
    header, length = _header(path, size=size)
    if not header:
        raise _damaged(f"{path.name} has no weights")
    if sum(_bytes_of(name, entry, rank=rank) for name, entry in header.items()) != size - 8 - length:
        raise _damaged(f"{path.name} is shorter or longer than its header says")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _model_shapes(model: Path) -> _Shapes:
    files = sorted(model.glob("*.safetensors"))
    headers = [_header(file, size=file.stat().st_size)[0] for file in files]
    return {name: tuple(entry["shape"]) for header in headers for name, entry in header.items()}


def _check_sizes(tensors: _Shapes, model: _Shapes) -> None:
    """Each pair of matrices makes one of a weight's size. vLLM takes smaller ones for a part of it, without a word.

    A model whose weights have other names altogether is left to the engine.
    """
    pairs = {name: _TENSOR.fullmatch(name) for name in tensors}
    weights = {name: model.get(f"{pair['module']}.weight") for name, pair in pairs.items() if pair is not None}
    if not any(weights.values()):
        return
    for name, weight in weights.items():
        # The one side is the rank; a weight has its outputs first, as lora_B does, and its inputs second, as lora_A.
        side = 1 if ".lora_A." in name else 0
        if weight is None or tensors[name][side] != weight[side]:
            raise _unsupported(f"{name[:80]} does not fit a weight of this model")


def _header(path: Path, *, size: int) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and the length of that."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise _damaged(f"{path.name} is no file of weights")
        header: Any = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, length


def _bytes_of(name: str, entry: Any, *, rank: int) -> int:
    matched, shape = _TENSOR.fullmatch(name), entry["shape"]
    if matched is None or entry["dtype"] not in _BYTES_OF or len(shape) != 2:
        raise _unsupported(f"{name[:80]} is no low-rank matrix of 16 or 32 bits")
    if shape[0 if matched["side"] == "A" else 1] != rank:
        raise _damaged(f"{name[:80]} is not of rank {rank}")
    return int(_BYTES_OF[entry["dtype"]] * prod(shape))


def _revision(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _sentence(error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"a folder with {CONFIG} and {WEIGHTS} is needed"
    return f"its files cannot be read ({type(error).__name__})"


def _damaged(why: str) -> DownstackError:
    return DownstackError(Reason.PARAM_OUT_OF_RANGE, f"path: {why}")


def _unsupported(why: str) -> DownstackError:
    return DownstackError(Reason.UNSUPPORTED_FEATURE, f"This adapter cannot be used: {why}.")
