"""Facts of the model and the server that the page shows."""

from dataclasses import dataclass
from typing import Protocol

from glmkit.errors import RequestError
from glmkit.session import LM
from glmkit.tokenizer.chat_template import ChatDefaults

from ..settings import ServeSettings


class Served(Protocol):
    """The part of the server's state that the page reads."""

    lm: LM
    model_id: str
    settings: ServeSettings


@dataclass(frozen=True)
class Facts:
    """chat: the published sampling defaults, None for a model that was not taught to chat; system: whether it reads a
    system prompt; blanks: the marks of the blanks that it fills, the usual one first, () for a model that fills none;
    keys: whether the server asks for an API key.
    """

    model_id: str
    chat: ChatDefaults | None
    system: bool
    blanks: tuple[str, ...]
    keys: bool

    @classmethod
    def of(cls, state: Served) -> "Facts":
        """The facts of a model that is served."""
        lm = state.lm
        try:
            template = lm.chat_template
        except RequestError:
            template = None
        blanks: tuple[str, ...] = ()
        if lm.config.mask != "causal":
            blanks = tuple(lm.tokenizer.id_to_token(index) for index in lm.special.mask_ids())
        return cls(
            model_id=state.model_id,
            chat=template.defaults if template else None,
            system=template is not None and "system" in template.roles,
            blanks=blanks,
            keys=bool(state.settings.api_keys),
        )
