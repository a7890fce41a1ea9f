"""Model folders and their tokenizers, read without a network."""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers.decoders import DecodeStream

from services.kit.errors import StartupError

BUILTIN_SIM = "builtin:sim"
_PACKAGE = "package:"
_FILES = ("tokenizer.json", "config.json")
# A code point has at most four bytes; more pending tokens than this are no beginning of one.
_MAX_PENDING = 8


def model_folder(ref: str) -> Path:
    """The folder of a model: `builtin:sim`, `package:NAME/PATH` inside an installed Python package, or a path.

    Raises:
        StartupError: There is no such folder, or it is not a model's.
    """
    if ref == BUILTIN_SIM:
        folder = Path(__file__).with_name("sim_model")
    elif ref.startswith(_PACKAGE):
        folder = _in_package(ref.removeprefix(_PACKAGE))
    else:
        folder = Path(ref).expanduser()
    if not folder.is_dir():
        raise StartupError(f"There is no model folder {ref!r}.")
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise StartupError(f"The folder {ref!r} is not a model's: it has no {' and no '.join(missing)}.")
    return folder


def _in_package(ref: str) -> Path:
    name, _, path = ref.partition("/")
    # The package is looked up, not imported: some that carry weights want another inference library.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise StartupError(f"There is no Python package {name!r} here.")
    return Path(spec.submodule_search_locations[0]) / path


class Tokenizer:
    """Text to token ids and back, as the model's own tokenizer.json says."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, revision: str, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.revision = revision
        self.eos_token_ids = eos_token_ids

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads a model folder.

        Raises:
            StartupError: Its tokenizer.json cannot be read.
        """
        data = (folder / "tokenizer.json").read_bytes()
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except ValueError as error:
            raise StartupError(f"{folder / 'tokenizer.json'} cannot be read: {error}.") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        revision = hashlib.sha256(data).hexdigest()[:16]
        return cls(tokenizer, revision=revision, eos_token_ids=_eos_token_ids(folder, tokenizer))

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The token ids of a text. Names of special tokens in it become special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of one token by its name, such as `<|im_end|>`."""
        return self._tokenizer.token_to_id(token)

    def step(self, stream: DecodeStream, token_id: int) -> str:
        """Pushes one token through a decode stream; empty while a code point is incomplete."""
        return stream.step(self._tokenizer, token_id) or ""


class StreamDecoder:
    """Turns tokens into text as they come, and never splits a code point."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is complete with these tokens; what is incomplete is kept for the next ones."""
        return "".join(self._push_one(token_id) for token_id in token_ids)

    def flush(self) -> str:
        """What was kept; an incomplete code point becomes U+FFFD. For the end of the stream."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        self._stream = DecodeStream(skip_special_tokens=True)
        return text

    def _push_one(self, token_id: int) -> str:
        text = self._tokenizer.step(self._stream, token_id)
        if text:
            self._pending.clear()
            return text
        self._pending.append(token_id)
        return self.flush() if len(self._pending) > _MAX_PENDING else ""


def _eos_token_ids(folder: Path, tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        ids = _json(folder / name).get("eos_token_id")
        found.update(ids if isinstance(ids, list) else [ids] if isinstance(ids, int) else [])
    named = _json(folder / "tokenizer_config.json").get("eos_token")
    token = named.get("content") if isinstance(named, dict) else named
    if isinstance(token, str) and (token_id := tokenizer.token_to_id(token)) is not None:
        found.add(token_id)
    return frozenset(found)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_bytes())
    except ValueError as error:
        raise StartupError(f"{path} cannot be read: {error}.") from None
    return loaded if isinstance(loaded, dict) else {}
