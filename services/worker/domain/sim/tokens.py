"""The simulated model: each token is a function of all tokens before it, as with a real one at temperature 0."""

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash


@dataclass(frozen=True)
class SimModel:
    """What the simulated model says.

    Attributes:
        alphabet: The tokens that it says; an entry that is there twice comes twice as often.
        eos: The token that ends an answer. None: it never ends by itself.
        mean_output_tokens: The mean length of an answer; the lengths are distributed geometrically.
    """

    alphabet: Sequence[int]
    eos: int | None
    mean_output_tokens: int

    def start(self, prompt: Iterable[int], *, seed: int) -> "TokenStream":
        """The answer to a prompt. A prompt that ends with a part of the answer is answered with its rest."""
        return TokenStream(self, prompt, seed=seed)


class TokenStream:
    """One answer, token by token."""

    def __init__(self, model: SimModel, prompt: Iterable[int], *, seed: int) -> None:
        self._model = model
        self._state = xxhash.xxh3_64(seed=seed)
        self._state.update(_packed(prompt))

    def next(self, *, may_end: bool) -> int:
        """The next token; the end-of-sequence token only where the answer may end."""
        model, digest = self._model, self._state.intdigest()
        if may_end and model.eos is not None and digest % model.mean_output_tokens == 0:
            token = model.eos
        else:
            token = model.alphabet[(digest >> 24) % len(model.alphabet)]
        self._state.update(_packed((token,)))
        return token


def _packed(tokens: Iterable[int]) -> bytes:
    packed = array("I", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
