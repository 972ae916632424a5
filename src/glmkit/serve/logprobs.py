"""Log-probabilities of tokens as OpenAI's two interfaces show them."""

import codecs
import re
from collections.abc import Sequence

from glmkit.generate.outputs import TokenLogprob as Chosen
from glmkit.tokenizer.protocol import Tokenizer

from .schema.common import Alternative, ChatLogprobs, TextLogprobs, TokenLogprob

_BYTES = re.compile("(<0x[0-9A-F]{2}>)+")
_LEAST = -9999.0  # JSON has no infinity; OpenAI writes this for what is all but impossible


class LogprobWriter:
    """The tokens of one answer, in order."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._offset = tokenizer, 0
        self._before: int | None = None
        self._start = ""  # the text of the token before, alone
        self._characters = codecs.getincrementaldecoder("utf-8")("ignore")

    def chat(self, chosen: Sequence[Chosen]) -> ChatLogprobs:
        """The next tokens for chat completions."""
        content = []
        for one in chosen:
            raw = self._bytes(one.token)
            top = [self._alternative(token, logprob) for token, logprob in one.top]
            content.append(
                TokenLogprob(token=_shown(raw), bytes=list(raw), logprob=_finite(one.logprob), top_logprobs=top)
            )
            self._advance(one.token)
        return ChatLogprobs(content=content)

    def text(self, chosen: Sequence[Chosen]) -> TextLogprobs:
        """The next tokens for completions. A token is among its alternatives, even if not one of the likeliest."""
        tokens, offsets = [], []
        tops: list[dict[str, float]] = []
        for one in chosen:
            raw = self._bytes(one.token)
            tokens.append(_text(raw))
            offsets.append(self._offset)
            top: dict[str, float] = {}
            for token, logprob in one.top:
                top.setdefault(_text(self._bytes(token)), _finite(logprob))
            top.setdefault(_text(raw), _finite(one.logprob))
            tops.append(top)
            self._offset += len(self._characters.decode(raw))
            self._advance(one.token)
        logprobs = [_finite(one.logprob) for one in chosen]
        return TextLogprobs(tokens=tokens, token_logprobs=logprobs, top_logprobs=tops, text_offset=offsets)

    def _advance(self, token: int) -> None:
        self._before, self._start = token, self._tokenizer.decode([token], skip_specials=False)

    def _alternative(self, token: int, logprob: float) -> Alternative:
        raw = self._bytes(token)
        return Alternative(token=_shown(raw), bytes=list(raw), logprob=_finite(logprob))

    def _bytes(self, token: int) -> bytes:
        """The bytes that a token stands for here: its space in front shows only behind another token."""
        tokenizer, before = self._tokenizer, self._before
        name = tokenizer.id_to_token(token)
        if _BYTES.fullmatch(name):
            return bytes.fromhex(name.replace("<0x", "").replace(">", ""))
        alone = tokenizer.decode([token], skip_specials=False)
        if before is None:
            return alone.encode()
        both = tokenizer.decode([before, token], skip_specials=False)
        return (both[len(self._start) :] if both.startswith(self._start) else alone).encode()


def _shown(raw: bytes) -> str:
    """Show bytes as text where they stand beside it."""
    return raw.decode("utf-8", "replace")


def _text(raw: bytes) -> str:
    """Show bytes as text that tells tokens apart: those that are no whole character stand as \\xe4."""
    return raw.decode("utf-8", "backslashreplace")


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
