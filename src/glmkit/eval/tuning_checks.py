"""Checks around a fine-tuning run: its base measured before the first step, what it exported measured after the last.

A fine-tuning run calls `tuning_probes` and `measure_before` when its untuned model is ready, and `check_effect` with a
way to open what was exported. The measurement of the base lies in the run's directory, so that a resumed run has it.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from glmkit.adapters.attach import adapter_off, find_attached
from glmkit.errors import GLMKitError
from glmkit.generate.params import GenerationParams
from glmkit.model import GLM
from glmkit.session import LM
from glmkit.tokenizer.dialogue import NO_QUIRKS, EncodedRow, Example, Limits, Tokenized, TuningFormat
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.protocol import Tokenizer

from .effect import GENERAL, Effect, prove_effect
from .general_texts import general_dialogues
from .generation_scores import answer_texts
from .probes import Measured, Probes, measure
from .questions import Question

BEFORE_FILE = "before_tuning.safetensors"
MOST_ROWS = 16  # of one group that are measured
_GENERAL_LIMITS = Limits(source=256, target=256)


def tuning_probes(
    tokenizer: Tokenizer,
    tuning: TuningFormat,
    groups: Mapping[str, Sequence[Example]],
    limits: Limits,
    quirks: AbstractSet[str] = NO_QUIRKS,
    *,
    most: int = MOST_ROWS,
) -> Probes:
    """Rows at which a run is measured: some of every group of examples, and the general texts.

    groups: "held_out" are validation rows, "replay" those of the set that is mixed in against forgetting, "trained"
    training rows, which show the effect, but not what was learned. Rows that the family cannot express are left out.
    Raises DataError when nothing is left.
    """
    encoded = {
        **{name: _rows(tokenizer, tuning, spread(rows, most), limits, quirks) for name, rows in groups.items()},
        GENERAL: _rows(tokenizer, tuning, general_dialogues(), _GENERAL_LIMITS, NO_QUIRKS),
    }
    return Probes({name: rows for name, rows in encoded.items() if rows})


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


@dataclass(frozen=True)
class Side:
    """One validation row with two answers. question: the prompt as text, special tokens left out."""

    id: str
    question: str
    reference: str
    base: str
    tuned: str


def examine(
    run: Path,
    probes: Probes,
    questions: Sequence[Question],
    params: GenerationParams,
    reopen: Callable[[str], LM],
    open_base: Callable[[str], LM] | None = None,
    *,
    of_base: Sequence[str] | None = None,
    where: str | None = None,
) -> tuple[Effect, list[Side]]:
    """The effect of a run, and what base and tuned model answer to some questions, side by side.

    reopen, open_base: as in `check_effect`. Give open_base where a whole model was trained and nothing was asked
    before: it is opened first, asked and let go of, so that one model at a time is in memory; both are opened in
    float32, since 16 bits may round the tuning away. An adapter is taken off instead. of_base: answers that the base
    gave before training. Raises TrainingError as `prove_effect` does.
    """
    before = Measured.read(run / BEFORE_FILE, probes)
    dtype = "auto" if before is None else before.dtype
    if open_base is not None:
        dtype = "float32"
        base = open_base(dtype)
        before = measure(base.model, probes)
        of_base = answer_texts(base, questions, params)
        del base
    lm = reopen(dtype)
    effect = prove_effect(lm.model, probes, before, where=where or str(run))
    tuned = answer_texts(lm, questions, params)
    if of_base is None:
        with adapter_off(lm.model):
            of_base = answer_texts(lm, questions, params)
    texts = [lm.tokenizer.decode(question.ids) for question in questions]
    return effect, [
        Side(question.id, text, question.reference, first, second)
        for question, text, first, second in zip(questions, texts, of_base, tuned, strict=True)
    ]


def _rows(
    tokenizer: Tokenizer,
    tuning: TuningFormat,
    examples: Sequence[Example],
    limits: Limits,
    quirks: AbstractSet[str],
) -> list[EncodedRow]:
    rows: list[EncodedRow] = []
    for example in examples:
        try:
            if isinstance(example, Tokenized):
                rows += [example.row(tokenizer)] if isinstance(tokenizer, InputTokenizer) else []
            else:
                rows += tuning.rows(tokenizer, example, limits, quirks)
        except GLMKitError:  # told where the data was read
            continue
    return rows


def spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many of them, evenly spread: a file may be sorted."""
    wanted = min(most, len(examples))
    return [examples[number * len(examples) // wanted] for number in range(wanted)]
