"""Log-probabilities of a model at fixed rows: taken before and after training, they tell what training did.

Legend: N counted tokens, P places with a whole distribution, V vocabulary rows, T tokens of a row, H hidden width.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from glmkit.adapters.attach import adapter_off, find_attached
from glmkit.data.tuning_rows import RowMaker
from glmkit.errors import CheckpointError, DataError, GLMKitError
from glmkit.files import atomic_write
from glmkit.model import GLM
from glmkit.model.masks import Segments
from glmkit.tokenizer.dialogue import NO_QUIRKS, EncodedRow, Example, Limits

from .general_texts import general_dialogues

BEFORE_FILE = "before_tuning.safetensors"  # in a run's directory, so that a resumed run has it
GENERAL = "general"
MOST_ROWS = 16  # of one group that are measured
_GENERAL_LIMITS = Limits(source=256, target=256)
PLACES = 32  # of each group, with a whole distribution: 32 x 130,528 x 4 B = 16 MiB
_AT_ONCE = 16  # places whose logits are held together


@dataclass(frozen=True)
class Probes:
    """Rows at which a model is measured, by group: rows of the task that were held out, general texts.

    A counted token at the very beginning of a row has nothing before it and is not measured.
    """

    rows: Mapping[str, Sequence[EncodedRow]]

    def __post_init__(self) -> None:
        """Raise DataError when nothing is counted in any row."""
        if not self.groups():
            raise DataError("none of the rows to measure has a counted token", step="show them with `glm show`")

    @property
    def digest(self) -> str:
        """A name for the content: measurements of equal digests may be compared."""
        content = [[group, [[row.ids, row.counted] for row in rows]] for group, rows in self.rows.items()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def labels(self) -> list[tuple[str, EncodedRow, list[int]]]:
        """Group, row, and the places of the tokens that are measured in it, for every row that has some."""
        found = [
            (group, row, [place for place, counted in enumerate(row.counted) if counted and place])
            for group, rows in self.rows.items()
            for row in rows
        ]
        return [entry for entry in found if entry[2]]

    def groups(self) -> list[str]:
        """The group of every measured token, in the order of the measurement."""
        return [group for group, _, places in self.labels() for _ in places]

    def whole_places(self) -> list[int]:
        """Numbers, among the measured tokens, of those whose whole distribution is kept: spread over each group."""
        groups = self.groups()
        kept: list[int] = []
        for group in dict.fromkeys(groups):
            own = [number for number, name in enumerate(groups) if name == group]
            wanted = min(PLACES, len(own))
            kept += [own[number * len(own) // wanted] for number in range(wanted)]
        return sorted(kept)


@dataclass(frozen=True)
class Measured:
    """A model at the probes. log_p_N: of the tokens; log_p_PV: whole distributions at `whole_places`.

    Both float32 on the CPU. digest: of the probes. dtype: that the model computed in.
    """

    digest: str
    dtype: str
    log_p_N: Tensor
    log_p_PV: Tensor

    def save(self, path: Path) -> None:
        """Write a file that `read` opens."""
        facts = {"digest": self.digest, "dtype": self.dtype}
        with atomic_write(path) as file:
            file.write(save({"log_p": self.log_p_N, "log_p_whole": self.log_p_PV}, facts))

    @classmethod
    def read(cls, path: Path, probes: Probes) -> "Measured | None":
        """The measurement of these probes; None where the file is not there or is of others.

        Raises CheckpointError for a damaged one.
        """
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                if facts.get("digest") != probes.digest:
                    return None
                return cls(facts["digest"], facts["dtype"], file.get_tensor("log_p"), file.get_tensor("log_p_whole"))
        except (SafetensorError, KeyError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error})", step="remove it, and it is made again") from None


@contextmanager
def evaluating(model: GLM) -> Iterator[None]:
    """Switch a model to evaluation mode inside the block, every module of it back to its own mode behind."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def measure(model: GLM, probes: Probes) -> Measured:
    """Log-probabilities of a model at the probes, row by row, in evaluation mode.

    Raises DataError for logits that are no numbers.
    """
    whole = set(probes.whole_places())
    tokens: list[float] = []
    distributions: list[Tensor] = []
    with evaluating(model):
        for _, row, labels in probes.labels():
            hidden_TH = _hidden(model, row)
            for start in range(0, len(labels), _AT_ONCE):
                places = labels[start : start + _AT_ONCE]
                before = torch.tensor([place - 1 for place in places], device=hidden_TH.device)
                log_p = torch.log_softmax(model.head(hidden_TH[before]).float(), dim=-1).cpu()
                if log_p.isnan().any():
                    raise DataError("the model's logits are not finite at a row to measure", code="not_finite")
                distributions += [log_p[i].clone() for i in range(len(places)) if len(tokens) + i in whole]
                tokens += [float(log_p[i, row.ids[place]]) for i, place in enumerate(places)]
    dtype = str(model.dtype).removeprefix("torch.")
    return Measured(probes.digest, dtype, torch.tensor(tokens), torch.stack(distributions))


def _hidden(model: GLM, row: EncodedRow) -> Tensor:
    """(T,H): hidden states of one row with its own positions and prefix."""
    layout, device = row.layout, model.device
    hidden_1TH = model.hidden(
        torch.tensor([row.ids], device=device),
        position_ids=torch.tensor([[[*layout.positions], [*layout.blocks]]], device=device),
        segments=Segments(((0, 0, layout.prefix, len(row.ids)),)),
    )
    return hidden_1TH[0]


def tuning_probes(maker: RowMaker, groups: Mapping[str, Sequence[Example]], *, num_ids: int | None = None) -> Probes:
    """Rows at which a run is measured: some of every group of examples, and the general texts.

    groups: "held_out" are validation rows, "replay" those of the set that is mixed in against forgetting, "trained"
    training rows, which show the effect, but not what was learned. Rows that the family cannot express are left out.
    num_ids: rows of the model's embedding, where the tokenizer may have more ids: rows with these are left out, too;
    those of the data were refused before. Raises DataError when nothing is left.
    """

    def rows(examples: Sequence[Example], maker: RowMaker) -> list[EncodedRow]:
        found: list[EncodedRow] = []
        for example in examples:
            try:
                found += maker.rows(example)
            except GLMKitError:  # told where the data was read
                continue
        return found

    encoded = {name: rows(spread(examples, MOST_ROWS), maker) for name, examples in groups.items()}
    encoded[GENERAL] = rows(general_dialogues(), replace(maker, limits=_GENERAL_LIMITS, quirks=NO_QUIRKS))
    if num_ids is not None:
        encoded = {name: [row for row in some if max(row.ids) < num_ids] for name, some in encoded.items()}
    return Probes({name: some for name, some in encoded.items() if some})


def measure_before(run: Path, model: GLM, probes: Probes) -> Measured:
    """The untuned model at the probes, written into the run's directory; what lies there of the same probes is kept.

    An adapter on the model is taken off for it. Call it on the first rank alone, before the first step.
    """
    path = run / BEFORE_FILE
    found = Measured.read(path, probes)
    if found is not None:
        return found
    with untuned(model):
        found = measure(model, probes)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def untuned(model: GLM) -> AbstractContextManager[None]:
    """A block in which the model is without its adapter, where it has one."""
    return nullcontext() if find_attached(model) is None else adapter_off(model)


def spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many of them, evenly spread: a file may be sorted."""
    wanted = min(most, len(examples))
    return [examples[number * len(examples) // wanted] for number in range(wanted)]
