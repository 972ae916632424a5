"""Advice on what to do next: the step behind an error, and the command for a directory that can be used."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from glmkit.config import GLMConfig
from glmkit.families.family import preset, preset_names

from .finding import Finding
from .listing import Listing

_TWO_RELEASES = "weights and config may be of different releases; take both from one"
_ALL_RANKS = "a rank may be missing, and each holds a part of every matrix; copy all of them, of one release"
_CORRECT_ADAPTER = "correct the settings beside the adapter, or copy it again"
_CORRECT = "correct that in the config file, or download it again"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def with_step(finding: Finding, place: Listing) -> Finding:
    """An error of opening weights, with what to do about it."""
    if finding.kind == "bad_config":  # the weights are not to blame
        step = _CORRECT
    elif finding.next_step:
        step = finding.next_step.replace("config=", "--config")
    else:
        step = _ALL_RANKS if any(entry.rank is not None for entry in place.of("weights")) else _TWO_RELEASES
    return replace(finding, next_step=step)


def new_errors(found: Iterable[Finding], earlier: Iterable[Finding]) -> list[Finding]:
    """Findings about an adapter, each error with a step, without errors that earlier ones state more precisely."""
    return [
        replace(finding, next_step=finding.next_step or _CORRECT_ADAPTER) if finding.level == "error" else finding
        for finding in found
        if finding.level != "error" or not already_said(finding, earlier)
    ]


def already_said(finding: Finding, earlier: Iterable[Finding]) -> bool:
    """True when an earlier error is about a file of this one, so that it says the same more precisely."""
    return any(set(finding.files) & set(other.files) for other in earlier if other.level == "error")


def adapter_command(directory: str, base: object, config: GLMConfig | None) -> str:
    """A call of the model with its adapter. base: its directory, or what the settings call it."""
    named = str(base) if isinstance(base, Path) or _HUB_NAME.fullmatch(str(base)) else "MODEL"
    size = named.rpartition("/")[2].lower()
    if config is None and size in preset_names():
        config = preset(size)
    return call(config, f"{shlex.quote(named)} --adapter {shlex.quote(directory)}")


def call(config: GLMConfig | None, arguments: str) -> str:
    """The verb that a model of this kind of mask answers to, its arguments and a text."""
    causal = config is not None and config.mask == "causal"
    return f'glm generate {arguments} "…"' if causal else f'glm fill {arguments} "… [MASK] …"'
