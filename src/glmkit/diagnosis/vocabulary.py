"""Do config, weights, code and tokenizer speak of the same vocabulary? Generations are told apart by the presets."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from glmkit.checkpoint.open import Checkpoint
from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import GLMKitError, TokenizerError, names_text
from glmkit.families.family import Family, all_families
from glmkit.small_files import read_small
from glmkit.tokenizer.composed import ComposedTokenizer
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.trained import TrainedTokenizer, has_tokenizer

from .finding import Finding
from .headers import attempt
from .listing import Listing

# Roles whose ids open, mark and close what is generated: a wrong one is wrong output. The others are padding and ends.
_ACTING = ("mask", "gmask", "smask", "sop", "eop")
_CODE = re.compile(r"modeling_\w+\.py")
_CODE_BYTES = 1 << 20
_OFFSET_KEY = "num_image_tokens"  # ids before the text's, in the published tokenizer_config.json
_ONE_RELEASE = "copy weights, config.json and tokenizer files from one release"


def closest_preset(config: GLMConfig) -> tuple[str, list[str]]:
    """(name of the preset with the nearest shape, fields in which it differs); ("", []) when none has these blocks.

    The shape of a block decides; vocabulary, number of positions and axes may differ and are then named.
    """
    best: tuple[str, list[str]] = ("", [])
    own = all_families().get(config.family)
    for family in sorted(all_families().values(), key=lambda family: family is not own):
        for name, other in family.presets.items():
            if _shape(other) == _shape(config):
                differing = [key for key in _COMPARED if getattr(other, key) != getattr(config, key)]
                if not best[0] or len(differing) < len(best[1]):
                    best = (name, differing)
    return best


_COMPARED = (
    "vocab_size", "max_positions", "positions", "mlp", "gelu", "rope_base", "rope_interpolation", "tie_embeddings",
    "norm_eps",
)  # fmt: skip


def _shape(config: GLMConfig) -> tuple[int, ...]:
    return config.num_layers, config.hidden_size, config.num_heads, config.kv_heads, config.inner_size


def check_generation(config: GLMConfig, family: Family | None, listing: Listing) -> list[Finding]:
    """Ids of the config, and numbers in the modeling code beside it, against the presets of the family.

    A released vocabulary has its own special ids; a config or a code file with those of another release makes other
    programs stop with "130004 is not in list" (or 150004), or answer nonsense.
    """
    if family is None or config.special is None:
        return []
    findings: list[Finding] = []
    own = _acting_ids(config.special)
    releases = {
        name: (preset.vocab_size, _acting_ids(preset.special))
        for name, preset in family.presets.items()
        if preset.special is not None
    }
    for name, (rows, ids) in releases.items():
        alike = any(size == config.vocab_size and other == own for size, other in releases.values())
        if own == ids and rows != config.vocab_size and not alike:
            what = f"the special ids are those of {name} ({rows} rows), the table has {config.vocab_size} rows"
            findings.append(Finding("warning", what, str(listing.directory), _ONE_RELEASE))
            break
    foreign = {token: name for name, (_, ids) in releases.items() for token in ids - own}
    for entry in listing.of("code"):
        if not _CODE.fullmatch(entry.name) or entry.size > _CODE_BYTES or entry.problem:
            continue
        numbers = _numbers(entry.path)
        wrong = sorted(token for token in foreign if token in numbers)
        if wrong and not numbers & own:
            name = foreign[wrong[0]]
            what = (
                f"{entry.name} speaks of the ids {names_text(map(str, wrong))} of {name}, the config of {min(own)} on"
            )
            step = "glmkit runs no code of a model directory; for programs that do, download the code again"
            findings.append(Finding("warning", what, str(entry.path), step))
    return findings


def _acting_ids(special: SpecialIds) -> frozenset[int]:
    values = asdict(special)
    return frozenset(values[role] for role in _ACTING if values[role] is not None)


def _numbers(path: Path) -> set[int]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return {int(found) for found in re.findall(r"(?<![\w.])\d{4,7}(?![\w.])", text)}


def check_identity(opened: Checkpoint) -> list[Finding]:
    """Three findings: how the files lie, whose names the tensors have, which family it is; each with its evidence."""
    where, files = str(opened.directory), opened.files
    endings = names_text(sorted({Path(file.path).suffix for file in files}))
    cut = f", {opened.ranks} tensor-parallel ranks" if opened.ranks > 1 else ""
    container = f"container: {len(files)} file{'s' if len(files) > 1 else ''} ({endings}){cut}"
    names = opened.weights.names()
    naming = f"naming: {opened.layout.name}, such as {opened.weights.stored_name(names[0])}"
    judgement, title = opened.judgement, opened.family.title
    family = Finding("ok", f"family: {title}" + (f", by {judgement.evidence}" if judgement.evidence else ""), where)
    if judgement.doubt is not None:
        family = Finding("warning", judgement.doubt, where, judgement.step)
    return [Finding("ok", container, where), Finding("ok", naming, where), family]


def check_tokenizer(directory: Path, config: GLMConfig, family: Family) -> tuple[Tokenizer | None, list[Finding]]:
    """The tokenizer that loading would take, trained by glmkit or published, and whether it agrees with the config."""
    if has_tokenizer(directory):
        trained, finding = attempt(lambda: TrainedTokenizer.load(directory), directory)
        if trained is None:
            return None, [] if finding is None else [finding]
        return trained, compare_ids(directory, config, trained)
    tokenizer, finding = attempt(lambda: family.tokenizer(directory, config), directory)
    if tokenizer is None:
        owners = [
            other.title
            for other in all_families().values()
            if other is not family and _quietly(other, directory) is not None
        ]
        what = f"the tokenizer files here are those of {', '.join(owners[:1])}"
        hint = [Finding("error", what, str(directory), _ONE_RELEASE)] if owners else []
        if finding is not None or owners:
            return None, [*([] if finding is None else [finding]), *hint]
        wanted = " or ".join(family.tokenizer_files) or "a tokenizer trained by glmkit"
        what = f"no tokenizer files of {family.title} ({wanted})"
        step = "the weights load without them; for text, put them here, or give their folder with --tokenizer"
        return None, [Finding("warning", what, str(directory), step)]
    findings = [*compare_ids(directory, config, tokenizer), *_declared(directory, family, tokenizer)]
    return tokenizer, [*findings, *_added(directory, tokenizer)]


def _added(directory: Path, tokenizer: Tokenizer) -> list[Finding]:
    """Tokens that somebody added, and what of their declarations is not read."""
    if not isinstance(tokenizer, ComposedTokenizer):
        return []
    findings = [Finding("warning", note, str(directory)) for note in tokenizer.added.notes]
    if tokens := tokenizer.added.tokens:
        what = f"{len(tokens)} added tokens: {names_text(f'{token.text} {token.id}' for token in tokens)}"
        findings.append(Finding("ok", what, str(directory)))
    return findings


def _declared(directory: Path, family: Family, tokenizer: Tokenizer) -> list[Finding]:
    """Tokenizer settings that, read alone as other programs do, give other ids than the weights ask for."""
    path = directory / "tokenizer_config.json"
    try:
        if not path.is_file() or _OFFSET_KEY.encode() not in read_small(path, TokenizerError):
            return []
    except (OSError, TokenizerError):
        return []
    alone = _quietly(family, directory)
    if alone is None or _acting_ids(alone.special) == _acting_ids(tokenizer.special):
        return []
    theirs, ours = alone.special.gmask, tokenizer.special.gmask
    what = f"tokenizer_config.json ({_OFFSET_KEY}) puts [gMASK] at {theirs}, the weights have it at {ours}"
    step = f"glmkit follows the weights; other programs stop with '{ours} is not in list': {_ONE_RELEASE}"
    return [Finding("warning", what, str(path), step)]


def compare_ids(directory: Path, config: GLMConfig, tokenizer: Tokenizer) -> list[Finding]:
    """Findings about ids on which tokenizer and config disagree; one ok when they agree."""
    findings: list[Finding] = []
    if tokenizer.vocab_size > config.vocab_size:
        what = f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the embedding {config.vocab_size} rows"
        findings.append(Finding("error", what, str(directory), _ONE_RELEASE))
    if config.special is not None:
        ours, theirs = asdict(config.special), asdict(tokenizer.special)
        differing = {
            role: (theirs[role], ours[role])
            for role in ours
            if ours[role] is not None and theirs[role] is not None and ours[role] != theirs[role]
        }
        for level, roles in (("error", set(differing) & set(_ACTING)), ("warning", set(differing) - set(_ACTING))):
            if roles:
                pairs = names_text(f"{r} {differing[r][0]} and {differing[r][1]}" for r in sorted(roles))
                what = f"tokenizer and config put special tokens at different ids: {pairs}"
                findings.append(Finding("error" if level == "error" else "warning", what, str(directory), _ONE_RELEASE))
    if not findings:
        what = f"tokenizer of {tokenizer.vocab_size:,} ids; special ids agree with the config"
        if config.special is None:
            what = f"tokenizer of {tokenizer.vocab_size:,} ids"
        findings.append(Finding("ok", what, str(directory)))
    return findings


def _quietly(family: Family, directory: Path) -> Tokenizer | None:
    try:
        return family.tokenizer(directory, None)
    except (GLMKitError, OSError, ValueError, RuntimeError):
        return None


def titles_of_tokenizer(listing: Listing) -> list[str]:
    """The families whose tokenizer files lie here: several share a vocabulary."""
    named = {name for family in all_families().values() for name in family.tokenizer_files}
    if not any(listing.named(name) for name in named):
        return []
    return [family.title for family in all_families().values() if _quietly(family, listing.directory) is not None]


def vocabulary_alone(listing: Listing, titles: Iterable[str]) -> Finding:
    """The error of a directory with a tokenizer and no weights."""
    what = f"a tokenizer ({names_text(titles)}), but no weights"
    step = f"use it with a model: --tokenizer {shlex.quote(str(listing.directory))}"
    return Finding("error", what, str(listing.directory), step)
