"""The end of a training run, told on stdout, and the exit status that it means."""

import json
import signal

from glmkit.train.run import RunResult


def tell_end(outcome: RunResult, *, as_json: bool) -> int:
    """Print how a run ended; the exit status: 128 and the number of the signal that stopped it, else 0."""
    result = outcome.result
    loss = result.losses[-1] if result.losses else None
    summary = {
        "step": result.step,
        "reason": result.reason,
        "loss": loss,
        "dropped": result.dropped,
        "directory": str(outcome.directory),
        "model": None if outcome.model is None else str(outcome.model),
        "exported": outcome.exported,
    }
    status = 128 + signal.Signals[result.reason].value if result.reason in signal.Signals.__members__ else 0
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
        return status
    if outcome.model is None:
        print(f"stopped at step {result.step} ({result.reason}); continue with --resume auto")
    else:
        early = ", its evaluations got no better" if result.reason == "patience" else ""
        shown = "" if loss is None else f", loss {loss:.4f}"
        print(f"finished at step {result.step}{early}{shown}; model: {outcome.model}")
    if result.dropped:
        print(f"note: others replaced {result.dropped:,} texts in which nothing could be blanked (`glm show`)")
    return status
