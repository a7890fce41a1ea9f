"""Models without weights: a folder with the shape of a real one, which vLLM fills with random numbers."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from services.kit.models import BUILTIN_SIM, model_folder


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a Llama, and what they are those of."""

    name: str
    source: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    context_tokens: int

    @property
    def parameters(self) -> float:
        """How many there are."""
        head = self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + 2 * self.vocab * self.hidden

    def with_layers(self, layers: int) -> "ModelShape":
        """The same one with fewer layers."""
        return replace(self, layers=layers)

    def write(self, folder: Path) -> None:
        """The files that vLLM wants: the configuration, and a tokenizer that only has to be one."""
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context_tokens,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(model_folder(BUILTIN_SIM) / name, folder / name)


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3-8b", "Llama 3 8B", 32, 4096, 14336, 32, 8, 128256, 8192),
        ModelShape("llama-3-70b", "Llama 3 70B", 80, 8192, 28672, 64, 8, 128256, 8192),
        ModelShape("tiny", "a Llama of 4 small layers, to try this on a CPU", 4, 256, 512, 4, 2, 512, 512),
    )
}
