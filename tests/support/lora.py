"""Makes small LoRA adapters in PEFT's layout: random numbers, no download, no other library."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Sizes(NamedTuple):
    """What an adapter must know of its model: layers, and the widths of its states and values."""

    layers: int
    hidden: int
    values: int


SMOLLM2 = Sizes(layers=30, hidden=576, values=192)
TINY = Sizes(layers=2, hidden=64, values=64)


def make_adapter(folder: Path, sizes: Sizes = TINY, *, seed: int = 1, rank: int = 8, **config: Any) -> Path:
    """Writes an adapter of a model's query and value projections, and returns the folder.

    Its matrices are large enough to change what the model says. `config` goes into adapter_config.json.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(sizes.layers):
        for module, outputs in (("q_proj", sizes.hidden), ("v_proj", sizes.values)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = random.normal(scale=0.05, size=(rank, sizes.hidden)).astype("<f4")
            tensors[f"{name}.lora_B.weight"] = random.normal(scale=0.05, size=(outputs, rank)).astype("<f4")
    folder.mkdir(parents=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(written), encoding="utf-8")
    return folder


def make_model(folder: Path, sizes: Sizes) -> Path:
    """Writes the weights of such a model that adapters change, all zero, and returns the folder."""
    folder.mkdir(parents=True)
    widths = {"q_proj": sizes.hidden, "v_proj": sizes.values}
    tensors = {
        f"model.layers.{layer}.self_attn.{module}.weight": np.zeros((outputs, sizes.hidden), "<f4")
        for layer in range(sizes.layers)
        for module, outputs in widths.items()
    }
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_safetensors(path: Path, tensors: dict[str, Any]) -> None:
    """Writes float32 matrices: the header's length in 8 bytes, the header as JSON, then the numbers."""
    header, start = {}, 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header).encode()
    numbers = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
