"""What a request must be to be considered at all."""

import math

from services.kit.errors import DownstackError, Reason, Violations
from services.scheduler.domain.lease import MAX_ANSWERS
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.request import MAX_OFFERS, Offer, Request

MAX_EXCLUDED = 256
MAX_LABELS = 64
MAX_ID_BYTES = 256


def check(request: Request, limits: Limits) -> None:
    """Raise INVALID_ARGUMENT with every violation if the request's counts and hashes cannot be true."""
    violations = Violations()
    _check_ids(request, violations)
    if not 1 <= len(request.offers) <= MAX_OFFERS:
        violations.add("candidates", f"from 1 to {MAX_OFFERS} are needed")
    if len({(offer.model, offer.adapter) for offer in request.offers}) != len(request.offers):
        violations.add("candidates", "a model is named twice")
    for number, offer in enumerate(request.offers):
        _check_offer(offer, f"candidates[{number}]", violations, limits)
    if not 1 <= request.max_output_tokens <= limits.max_prompt_tokens:
        violations.add("max_output_tokens", f"must be from 1 to {limits.max_prompt_tokens}")
    if not 1 <= request.answers <= MAX_ANSWERS:
        violations.add("answers", f"must be from 1 to {MAX_ANSWERS}")
    if len(request.excluded_workers) > MAX_EXCLUDED:
        violations.add("excluded_workers", f"at most {MAX_EXCLUDED}")
    if len(request.labels) > MAX_LABELS:
        violations.add("labels", f"at most {MAX_LABELS}")
    _check_money(request, violations)
    violations.check(Reason.PARAM_OUT_OF_RANGE)


def _check_ids(request: Request, violations: Violations) -> None:
    for field, text in (("request_id", request.request_id), ("tenant_id", request.tenant_id)):
        if not 1 <= len(text.encode()) <= MAX_ID_BYTES:
            violations.add(field, f"must be from 1 to {MAX_ID_BYTES} bytes")
    if request.attempt < 1:
        violations.add("attempt", "must be at least 1")


def _check_offer(offer: Offer, where: str, violations: Violations, limits: Limits) -> None:
    if not offer.model:
        violations.add(f"{where}.model", "is required")
    if not 1 <= offer.prompt_tokens <= limits.max_prompt_tokens:
        violations.add(f"{where}.prompt_tokens", f"must be from 1 to {limits.max_prompt_tokens}")
    if offer.block_hashes and not offer.block_size:
        violations.add(f"{where}.block_size", "is required with block_hashes")
    elif offer.block_hashes and len(offer.block_hashes) != offer.prompt_tokens // offer.block_size:
        violations.add(f"{where}.block_hashes", "their number is not that of the prompt's full blocks")
    if not 0.0 <= offer.quality <= 1.0:
        violations.add(f"{where}.predicted_quality", "must be from 0 to 1")
    if offer.output_tokens is not None and not 1 <= offer.output_tokens <= limits.max_prompt_tokens:
        violations.add(f"{where}.predicted_output_tokens", f"must be from 1 to {limits.max_prompt_tokens}")


def _check_money(request: Request, violations: Violations) -> None:
    for field, amount in (("value", request.value), ("max_cost", request.max_cost)):
        if amount is not None and not (math.isfinite(amount) and amount >= 0):
            violations.add(field, "must be a number of at least 0")
    if request.min_quality is not None and not 0.0 <= request.min_quality <= 1.0:
        violations.add("min_quality", "must be from 0 to 1")


def no_model(request: Request) -> DownstackError:
    names = ", ".join(sorted({offer.model for offer in request.offers}))
    return DownstackError(Reason.MODEL_NOT_FOUND, f"no worker serves {names}", metadata={"model": names})
