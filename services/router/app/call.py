"""One request on its way: who asks, until when, and how far it came."""

from dataclasses import dataclass, field

from services.kit.errors import DownstackError, Reason
from services.kit.identity import Identity
from services.router.domain.attempts import deadline_passed, finish_reason_of
from services.router.domain.facts import RequestFinished, Subject
from services.router.domain.outcome import FinishReason, Timings, Usage
from services.router.domain.progress import Progress
from services.router.domain.request import GenerationSpec
from services.router.ports import Placement, RequestEnd

OK = "OK"
# A cancellation this close to the deadline is the deadline's: the transport cancels a little before or after it.
_DEADLINE_SLACK_S = 0.05


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks for what, and until when. Times are monotonic, in seconds."""

    identity: Identity
    request_id: str
    method: str
    received_s: float
    deadline_s: float

    def subject(self, conversation_id: str = "") -> Subject:
        return Subject(
            tenant_id=self.identity.tenant_id,
            principal=self.identity.principal,
            key_id=self.identity.key_id,
            request_id=self.request_id,
            conversation_id=conversation_id,
        )

    def remaining_s(self, now_s: float) -> float:
        """The time that is left. DEADLINE_IN_QUEUE where there is none."""
        left = self.deadline_s - now_s
        if left <= 0:
            raise deadline_passed(Reason.DEADLINE_IN_QUEUE)
        return left


@dataclass(slots=True)
class Run:
    """The state of one request. It starts as an internal failure and becomes what it was seen to become.

    Attributes:
        attempt: The number of placements so far.
        placement: The lease to release at the end. None where there is none, or it was released already.
        delivered: The caller got a frame, so that no other worker can start over.
        handed_over: The caller holds the ticket itself, and the end of the lease is its own.
    """

    call: Call
    spec: GenerationSpec
    progress: Progress
    model: str = ""
    degraded: bool = False
    attempt: int = 0
    placement: Placement | None = None
    excluded: tuple[str, ...] = ()
    delivered: bool = False
    handed_over: bool = False
    code: str = Reason.INTERNAL.value
    reason: str = Reason.INTERNAL.value
    finish_reason: FinishReason = FinishReason.ERROR
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def of(cls, call: Call, spec: GenerationSpec) -> "Run":
        return cls(call=call, spec=spec, progress=Progress(received_s=call.received_s))

    def ended_well(self, finish_reason: FinishReason, usage: Usage) -> None:
        self.code, self.reason = OK, ""
        self.finish_reason, self.usage = finish_reason, usage

    def failed(self, error: DownstackError) -> None:
        self.code, self.reason = error.code.value, error.reason.value
        self.finish_reason, self.usage = finish_reason_of(error), self.progress.delivered()

    def abandoned(self, now_s: float) -> None:
        """The caller is gone, or its deadline passed. What had ended well stays so."""
        if self.code == OK:
            return
        if now_s >= self.call.deadline_s - _DEADLINE_SLACK_S:
            reason = Reason.DEADLINE_IN_GENERATION if self.placement else Reason.DEADLINE_IN_QUEUE
        else:
            reason = Reason.CLIENT_CANCELLED
        self.failed(DownstackError(reason, "the caller is gone"))

    def finished_fact(self, now_s: float) -> RequestFinished:
        return RequestFinished(
            code=self.code,
            reason=self.reason,
            finish_reason=self.finish_reason,
            usage=self.usage,
            timings=self.progress.timings(Timings(), now_s=now_s),
            attempts=self.attempt,
        )

    def end(self, now_s: float) -> RequestEnd:
        return RequestEnd(
            method=self.call.method,
            model=self.model,
            code=self.code,
            reason=self.reason,
            usage=self.usage,
            ttft_s=self.progress.ttft_s,
            tpot_s=self.progress.tpot_s,
            total_s=now_s - self.call.received_s,
            attempts=self.attempt,
            retrieval_degraded=self.degraded,
        )
