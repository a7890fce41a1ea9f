"""Everything that is wrong with a request, collected before anything is said."""

from dataclasses import dataclass, field

from services.kit.errors import DownstackError, FieldViolation, Reason


@dataclass(slots=True)
class Findings:
    """Violations of one request. The error carries all of them and the reason of the first."""

    reasons: list[Reason] = field(default_factory=list)
    violations: list[FieldViolation] = field(default_factory=list)

    def add(self, where: str, description: str, *, reason: Reason = Reason.PARAM_OUT_OF_RANGE) -> None:
        self.reasons.append(reason)
        self.violations.append(FieldViolation(field=where, description=description))

    def between(self, where: str, value: float | None, *, least: float, most: float) -> None:
        """Add a violation unless the value is unset or within the closed range. NaN is outside."""
        if value is not None and not least <= value <= most:
            self.add(where, f"must be from {least:g} to {most:g}, is {value:g}")

    def above(self, where: str, value: float | None, *, floor: float, most: float) -> None:
        """Add a violation unless the value is unset or within the range that is open below."""
        if value is not None and not floor < value <= most:
            self.add(where, f"must be above {floor:g} and at most {most:g}, is {value:g}")

    def bytes_at_most(self, where: str, text: str, *, most: int) -> None:
        """Check the length as UTF-8 and that no NUL, which no database stores as text, is inside."""
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > most:
            self.add(where, f"must be at most {most} bytes, is {size}")
        self.no_nul(where, text)

    def no_nul(self, where: str, text: str) -> None:
        if "\x00" in text:
            self.add(where, "must not contain the character U+0000", reason=Reason.BAD_ENCODING)

    def raise_if_any(self) -> None:
        if not self.violations:
            return
        first = self.violations[0]
        more = f" (and {len(self.violations) - 1} more)" if len(self.violations) > 1 else ""
        raise DownstackError(
            self.reasons[0], f"{first.field} {first.description}{more}", violations=tuple(self.violations)
        )
