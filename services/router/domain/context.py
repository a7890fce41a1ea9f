"""How much of a model's context an answer may take."""

from services.kit.errors import DownstackError, FieldViolation, Reason


def output_limit(prompt_tokens: int, *, context_tokens: int, max_tokens: int | None, model: str) -> int:
    """The most tokens the answer may have: what the caller allows, at most what the prompt leaves.

    Raises PROMPT_TOO_LONG, naming both numbers, where the prompt leaves no room for a single token.
    """
    left = context_tokens - prompt_tokens
    if left < 1:
        sentence = (
            f"the prompt has {prompt_tokens} tokens, but the context of {model} holds {context_tokens} "
            "tokens with at least one for the answer"
        )
        raise DownstackError(
            Reason.PROMPT_TOO_LONG,
            sentence,
            metadata={"prompt_tokens": str(prompt_tokens), "context_tokens": str(context_tokens)},
            violations=(FieldViolation(field="spec", description=sentence),),
        )
    return left if max_tokens is None else min(left, max_tokens)
