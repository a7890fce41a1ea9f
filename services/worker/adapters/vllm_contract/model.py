"""What a model's folder says of it, and its tokenizer's files as an archive."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downstack.smg import common_pb2

from services.kit.models import Tokenizer, model_folder

_CHUNK_BYTES = 64 * 1024
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder.

    Attributes:
        ref: What the settings call it.
        config: Its config.json.
    """

    ref: str
    folder: Path
    tokenizer: Tokenizer
    config: dict[str, Any]

    @classmethod
    def read(cls, ref: str, tokenizer: Tokenizer) -> "ModelFiles":
        """The model of the settings; its tokenizer is loaded already."""
        folder = model_folder(ref)
        return cls(ref, folder, tokenizer, json.loads((folder / "config.json").read_bytes()))

    def tokenizer_chunks(self) -> Iterator[common_pb2.GetTokenizerChunk]:
        """A ZIP archive of the tokenizer's files in pieces; the last one has the digest of the whole."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in _TOKENIZER_FILES:
                if (self.folder / name).is_file():
                    archive.write(self.folder / name, name)
        data = buffer.getvalue()
        starts = range(0, len(data), _CHUNK_BYTES)
        for start in starts:
            chunk = common_pb2.GetTokenizerChunk(data=data[start : start + _CHUNK_BYTES])
            if start == starts[-1]:
                chunk.sha256 = hashlib.sha256(data).hexdigest()
            yield chunk
