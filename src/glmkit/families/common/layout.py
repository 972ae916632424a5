"""Tables of how a published layout names, fuses, turns and cuts the tensors of our model: data, no torch.

One table serves both ways. A published matrix is a list of our matrices ("parts"). Under tensor parallelism one rule
covers every published layout: cut every part over the ranks, then fuse the parts of a rank in the rule's `order`.

* `concat` after cutting gives GLM's query_key_value (a rank holds [its q; its k; its v], `THUDM/GLM:change_mp.py`), the
  gated matrix of GLM-130B ([its x1; its x2], `THUDM/GLM-130B:tools/convert_tp.py`) and grouped keys and values.
* `heads` (q, k, v of head 0, then of head 1, ...) gives GLM-130B's and ChatGLM-6B's query_key_value, whose plain cut
  is a cut between heads, and what PaddleNLP makes of GLM's under tensor parallelism (`parallel_order`).

Names are templates: `{i}` stands for the layer number. A stem is a name without its last part (weight, bias).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from glmkit.config import GenerationSettings, GLMConfig

Kind = Literal["linear", "table", "vector"]
Order = Literal["concat", "heads"]
Cut = Literal["rows", "columns"]
Container = Literal["huggingface", "ranks", "paddle"]
# Prefixes that PEFT, data parallelism, torch.compile and TRL put before a model's own names; no model has such names
# itself. A trainer's "model." is a wrapper for published layouts only: our own names begin with it.
WRAPPERS = ("base_model.model.", "base_model.", "module.", "_orig_mod.", "pretrained_model.")


@dataclass(frozen=True)
class Rule:
    """One published tensor (stem `theirs`) made of our stems `ours`, in the order in which they are fused.

    parameters: what may hang on the stem; a model without a bias, say, just lacks it. kind: "linear" matrices are
    (in, out) in transposed layouts, a "table" (embedding) never is. cut: how ranks share it, None = every rank has all
    of it; "rows" are outputs (a bias is cut with them), "columns" inputs (the bias is whole everywhere).
    parallel_order: the order when there is more than one rank, where that differs.
    """

    theirs: str
    ours: tuple[str, ...]
    parameters: tuple[str, ...] = ("weight", "bias")
    kind: Kind = "linear"
    order: Order = "concat"
    cut: Cut | None = None
    parallel_order: Order | None = None

    def order_for(self, ranks: int) -> Order:
        """Order in which parts are fused on one of `ranks` ranks."""
        return self.parallel_order if ranks > 1 and self.parallel_order is not None else self.order

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.theirs


@dataclass(frozen=True)
class Derived:
    """A published tensor that follows from the config: rotary frequencies 1 / base^(2j / width), j = 0, 1, ...

    Left out on reading, recomputed on writing, in the dtype of the norms. `base` is what the reference builds the
    buffer with, whatever ratio it applies later. rounded: through float16, as the reference does even in float32.
    cut: whether the reference's tool cuts it over the ranks like a matrix (harmless, it is never read).
    """

    theirs: str
    base: float = 10000.0
    rounded: bool = False
    cut: bool = False

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.theirs


@dataclass(frozen=True)
class Alias:
    """A second copy: the published stem `theirs` is our `ours`, or when that is tied the table `of` once more.

    stored: whether a tied model's file has the copy. On reading a copy that differs makes the model untied.
    """

    theirs: str
    ours: str = "lm_head"
    of: str = "model.embed_tokens"
    kind: Kind = "linear"
    stored: bool = True
    cut: Cut | None = None


@dataclass(frozen=True)
class Published:
    """Contents of a published config file: our config, settings of generation, and remarks of one line each.

    name: what the file calls its model (`_name_or_path`), which conversion keeps.
    """

    config: GLMConfig
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    notes: list[str] = field(default_factory=list)
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Facts that a published config file states beside the model's: generation, dtype of the weights, ranks."""

    generation: GenerationSettings = field(default_factory=GenerationSettings)
    dtype: str | None = None
    ranks: int = 1


@dataclass(frozen=True, kw_only=True)
class RemoteCode:
    """Habits of the code that was published beside a layout, on which old scripts rely.

    body, attention, mlp, block: names of its classes. hidden_masks: (B,1,T,S) masks are True where a token is hidden.
    needs_blank: every row must have a mask and a start of piece where masks and positions are not given. shifts_labels:
    labels stand where their ids stand, and the loss shifts them. sequence_first: hidden states are (T,B,H), and so are
    past keys. guard_id: what its chat writes where scores are NaN; guard_from_pad: it is counted from the padding's id.
    classifies: it has a class for the classification of texts. streams_past: its stream_chat takes and gives past keys.
    """

    body: str = "ChatGLMModel"
    attention: str = "SelfAttention"
    mlp: str = "MLP"
    block: str = "GLMBlock"
    hidden_masks: bool = False
    needs_blank: bool = False
    shifts_labels: bool = True
    sequence_first: bool = True
    guard_id: int = 5
    guard_from_pad: bool = False
    classifies: bool = True
    streams_past: bool = True


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which a family was published.

    name: what `glm convert --to` calls it. container: how files lie (Hugging Face shards, one mp_rank file per rank
    under a tag, PaddlePaddle parameters). base: the part of the names that a file saved from the base class lacks.
    wrappers: prefixes that training wrappers leave, maybe several at once, and that are stripped. ignored: patterns of
    whole names that carry nothing learned. axes: GLMConfig fields that this layout's own reference decides.
    config_file: the name to write. tag_files: where the tag of the current folder is written, for mp_rank files.
    remote: habits of its code, None where old scripts do not know it by `AutoModel`.
    """

    name: str
    container: Container
    rules: tuple[Rule, ...]
    derived: tuple[Derived, ...] = ()
    aliases: tuple[Alias, ...] = ()
    ignored: tuple[str, ...] = ()
    base: str = ""
    wrappers: tuple[str, ...] = (*WRAPPERS, "model.")
    transposed: bool = False
    parallel: bool = False  # whether it was ever published in several ranks
    quantized: bool = False  # whether INT8 and INT4 were ever published in it
    prefix_counts: bool = False  # whether its code counts the positions of past keys that PEFT puts in front
    scale_blocks: bool = False  # scales keep their second dimension (rows, blocks)
    axes: Mapping[str, object] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    config_file: str = "config.json"
    tag_files: tuple[str, ...] = ()
    tag: str = ""  # the folder's name where nothing else is asked for
    remote: RemoteCode | None = None
    read_config: Callable[[Mapping[str, object]], Published]
    write_config: Callable[[GLMConfig, Extras], dict[str, object]]

    def decided(self, config: GLMConfig) -> GLMConfig:
        """The config of the same family with the axes that this layout's own reference decides."""
        return GLMConfig.from_dict({**config.to_dict(), **self.axes, "family": config.family})

    def spellings(self, name: str) -> Iterator[str]:
        """The names by which the rules may know a found name: as it is, without wrappers, with the base."""
        for bare in self.unwrapped(name):
            yield bare
            if self.base:
                yield self.base + bare

    def unwrapped(self, name: str) -> Iterator[str]:
        """The name, then without its first wrapper, then without the next one, ..."""
        yield name
        while wrapper := next((w for w in self.wrappers if name.startswith(w)), ""):
            name = name[len(wrapper) :]
            yield name

    def is_ignored(self, name: str) -> bool:
        """True for the name of a tensor that carries nothing learned."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)

    def resolve(self, stem: str) -> tuple[Rule, int | None] | None:
        """The rule of a published stem, and the layer number; None when no rule claims it. Heads count as rules."""
        for spelling in self.spellings(stem):
            for rule in (*self.rules, *map(head_rule, self.aliases)):
                found = template_match(rule.theirs, spelling)
                if found is not None:
                    return rule, found if rule.per_layer else None
        return None


def head_rule(alias: Alias) -> Rule:
    """The rule by which an untied copy is read and written."""
    return Rule(alias.theirs, (alias.ours,), ("weight",), alias.kind, cut=alias.cut)


def template_match(template: str, text: str) -> int | None:
    """The layer number when `text` fits the template (0 when the template has none), else None."""
    match = _pattern(template).fullmatch(text)
    return None if match is None else int(match[1]) if match.groups() else 0


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", "(0|[1-9][0-9]{0,5})"))
