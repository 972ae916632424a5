"""The report on one directory."""

from dataclasses import asdict, dataclass, field

from .finding import Finding, has_errors
from .forecast import Use


@dataclass
class Report:
    """Facts, findings and advice about a directory. `facts` have stable names; None where a fact is not known."""

    directory: str
    kind: str = "nothing"  # or model, adapter, store, run
    facts: dict[str, object] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    forecast: list[Use] = field(default_factory=list)
    free_ram: int | None = None
    free_gpu: int | None = None
    next_command: str = ""

    @property
    def usable(self) -> bool:
        """True when the directory can be loaded."""
        return self.kind != "nothing" and not has_errors(self.findings)

    def to_dict(self) -> dict[str, object]:
        """JSON-able values under stable keys."""
        return {
            "directory": self.directory,
            "kind": self.kind,
            "usable": self.usable,
            "facts": self.facts,
            "findings": [finding.to_dict() for finding in self.findings],
            "free_ram_bytes": self.free_ram,
            "free_gpu_bytes": self.free_gpu,
            "forecast": [asdict(use) for use in self.forecast],
            "next": self.next_command,
        }
