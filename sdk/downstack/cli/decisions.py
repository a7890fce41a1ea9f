"""How a placement and its reasons are shown."""

from downstack.cli.output import console, count, enum_name, money, print_table
from downstack.inference.v1 import inference_pb2
from downstack.types.v1 import decision_pb2, usage_pb2


def print_decision(decision: decision_pb2.Decision) -> None:
    """The decision in a sentence, then the workers it was taken from."""
    out = console()
    head = f"Attempt {decision.attempt}: {decision.model} on {decision.worker_id} (policy {decision.policy})"
    out.print(head, style="bold", markup=False)
    out.print(decision.reason, markup=False)
    predicted = f"{decision.predicted_cached_tokens} of {decision.prompt_tokens} prompt tokens predicted in the cache"
    out.print(f"{predicted}, waited {decision.queue_ms:.1f} ms", style="dim", markup=False)
    for budget in decision.budget_warnings:
        out.print(f"The budget of the {budget} is passed.", style="yellow", markup=False)
    rows = [
        [
            candidate.worker_id,
            candidate.model,
            str(candidate.cached_tokens),
            str(candidate.running_requests),
            f"{candidate.ttft_ms:.0f}",
            f"{candidate.score:.4f}" if candidate.HasField("score") else "",
            candidate.filtered_by,
        ]
        for candidate in decision.candidates
    ]
    print_table(["worker", "model", "cached", "running", "first token, ms", "score", "filtered by"], rows)


def print_attempts(found: inference_pb2.ExplainRequestResponse) -> None:
    """All attempts of a request, with what the ledger has of each."""
    for attempt in found.attempts:
        print_decision(attempt.decision)
        reason = enum_name(usage_pb2.FinishReason, attempt.finish_reason, "FINISH_REASON_")
        if not attempt.finish_reason:
            console().print("not in the ledger yet", style="dim")
            continue
        counts = (
            f"{count(attempt.usage, 'input_total')} tokens in ({count(attempt.usage, 'input_cached')} cached), "
            f"{count(attempt.usage, 'output_total')} out"
        )
        console().print(f"ended: {reason} · {counts} · cost {money(attempt.cost)}", markup=False)
