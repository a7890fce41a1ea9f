"""Writes the tokenizer of the simulated model: one token for each byte, and three special ones."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def build() -> Tokenizer:
    """Token ids 0 to 255 are the bytes themselves; 256 to 258 are the special tokens in order."""
    tokenizer = Tokenizer(models.BPE(vocab=_bytes(), merges=[]))
    # use_regex would split the text into words first, which changes nothing where nothing is merged.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def _bytes() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others follow after U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return {names[byte]: byte for byte in range(256)}


if __name__ == "__main__":
    build().save(str(Path(__file__).with_name("tokenizer.json")))
