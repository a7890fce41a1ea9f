"""What may be embedded at once, checked before an engine sees it."""

from collections.abc import Sequence

from services.kit.errors import DownstackError, Reason, Violations

MAX_TEXTS = 256
MAX_TEXT_BYTES = 64 * 1024


def check_texts(texts: Sequence[str]) -> None:
    """Raises DownstackError PARAM_OUT_OF_RANGE for no text, too many, or those that are empty or too long."""
    found = Violations()
    if not 1 <= len(texts) <= MAX_TEXTS:
        found.add("texts", f"must be 1 to {MAX_TEXTS}")
    for number, text in enumerate(texts[:MAX_TEXTS]):
        if not 1 <= len(text.encode()) <= MAX_TEXT_BYTES:
            found.add(f"texts[{number}]", f"must be 1 to {MAX_TEXT_BYTES} bytes")
    found.check()


def check_lengths(prompts: Sequence[Sequence[int]], *, context_tokens: int) -> None:
    """Raises DownstackError PROMPT_TOO_LONG with every text that has more tokens than fit: none is cut off unseen."""
    found = Violations()
    for number, prompt in enumerate(prompts):
        if len(prompt) > context_tokens:
            found.add(f"texts[{number}]", f"has {len(prompt)} tokens; at most {context_tokens} fit")
    found.check(Reason.PROMPT_TOO_LONG)


def too_many(most: int) -> DownstackError:
    """The error for more texts than may wait."""
    return DownstackError(
        Reason.OVERLOADED,
        f"More than {most} texts would wait to be embedded.",
        metadata={"max_texts": str(most)},
        retry_after_s=1.0,
    )
