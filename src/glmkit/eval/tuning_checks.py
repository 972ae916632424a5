"""Checks around a fine-tuning run: its base measured before the first step, what it exported measured after the last.

A fine-tuning run calls `tuning_probes` and `measure_before` when its untuned model is ready, and `check_effect` with a
way to open what was exported. The measurement of the base lies in the run's directory, so that a resumed run has it.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from pathlib import Path

from glmkit.adapters.attach import adapter_off, find_attached
from glmkit.errors import GLMKitError
from glmkit.model import GLM
from glmkit.session import LM
from glmkit.tokenizer.dialogue import NO_QUIRKS, Dialogue, EncodedRow, Limits, TuningFormat
from glmkit.tokenizer.protocol import Tokenizer

from .effect import GENERAL, Effect, prove_effect
from .general_texts import general_dialogues
from .probes import Measured, Probes, measure

BEFORE_FILE = "before_tuning.safetensors"
HELD_OUT = "held_out"
MOST_ROWS = 16  # of one group that are measured
_GENERAL_LIMITS = Limits(source=256, target=256)


def tuning_probes(
    tokenizer: Tokenizer,
    tuning: TuningFormat,
    held_out: Sequence[Dialogue],
    limits: Limits,
    quirks: AbstractSet[str] = NO_QUIRKS,
    *,
    replay: Sequence[Dialogue] = (),
    most: int = MOST_ROWS,
) -> Probes:
    """Rows at which a run is measured: some of its validation data, of what it replays, and the general texts.

    held_out: validation rows; without any, training rows show the effect as well, but not what was learned. replay: of
    the validation rows of the set that is mixed in against forgetting. Rows that the family cannot express are left
    out. Raises DataError when nothing is left.
    """
    groups = {
        HELD_OUT: _rows(tokenizer, tuning, _spread(held_out, most), limits, quirks),
        "replay": _rows(tokenizer, tuning, _spread(replay, most), limits, quirks),
        GENERAL: _rows(tokenizer, tuning, general_dialogues(), _GENERAL_LIMITS, NO_QUIRKS),
    }
    return Probes({name: rows for name, rows in groups.items() if rows})


def measure_before(run: Path, model: GLM, probes: Probes) -> Measured:
    """The untuned model at the probes, written into the run's directory; what lies there of the same probes is kept.

    An adapter on the model is taken off for it. Call it on the first rank alone, before the first step.
    """
    path = run / BEFORE_FILE
    found = Measured.read(path, probes)
    if found is not None:
        return found
    with nullcontext() if find_attached(model) is None else adapter_off(model):
        found = measure(model, probes)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def check_effect(
    run: Path,
    probes: Probes,
    reopen: Callable[[str], LM],
    *,
    open_base: Callable[[str], LM] | None = None,
    where: str | None = None,
) -> tuple[LM, Effect]:
    """Open what a run exported and prove that it differs from the base: (the opened model, the effect).

    reopen: opens it, with the dtype that it is given ("auto" where nothing says); base and adapter where an adapter was
    trained. open_base: opens the base alone; used where a whole model was trained and the run's directory has no
    measurement from before. where: what is opened, for messages. Raises TrainingError as `prove_effect` does, and what
    opening raises.
    """
    before = Measured.read(run / BEFORE_FILE, probes)
    lm = reopen("auto" if before is None else before.dtype)
    if before is None and find_attached(lm.model) is None:
        if open_base is None:
            raise GLMKitError(
                f"{run} has no {BEFORE_FILE} of these rows, so the tuned model has nothing to be compared with",
                step="name the base",
            )
        before = measure(open_base("auto").model, probes)
    return lm, prove_effect(lm.model, probes, before, where=where or str(run))


def _rows(
    tokenizer: Tokenizer,
    tuning: TuningFormat,
    dialogues: Sequence[Dialogue],
    limits: Limits,
    quirks: AbstractSet[str],
) -> list[EncodedRow]:
    rows: list[EncodedRow] = []
    for dialogue in dialogues:
        try:
            rows += tuning.rows(tokenizer, dialogue, limits, quirks)
        except GLMKitError:  # told where the data was read
            continue
    return rows


def _spread(dialogues: Sequence[Dialogue], most: int) -> list[Dialogue]:
    """At most so many of them, evenly spread: a file may be sorted."""
    wanted = min(most, len(dialogues))
    return [dialogues[number * len(dialogues) // wanted] for number in range(wanted)]
