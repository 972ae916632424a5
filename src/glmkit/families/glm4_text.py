"""Tokenizer and conversations of GLM-4-9B and GLM-4-0414.

Sources: `THUDM/glm-4-9b-chat:tokenization_chatglm.py` and `modeling_chatglm.py` (June 2024), the special tokens of its
`tokenizer_config.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import TokenizerError
from glmkit.tokenizer.chat import Message
from glmkit.tokenizer.json_vocabulary import JsonVocabulary
from glmkit.tokenizer.ranks import RankVocabulary
from glmkit.tokenizer.tiktoken import TiktokenTokenizer
from glmkit.tokenizer.vocabulary_files import check_entries, decode_vocabulary, parse_json, read_vocabulary

from .glm4_tools import functions, self_description, tool_sections
from .role_chat import RoleTemplate

RANKS_FILE, JSON_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
TOKENIZER_FILES = (RANKS_FILE, JSON_FILE)
OPENING = ("[gMASK]", "<sop>")
_ENTRIES = {151552: 151329}  # of the published vocabulary, by rows of the embedding

# The tokens behind the vocabulary, in the order of their ids, where no file beside it says otherwise.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)


def load_tokenizer(directory: Path, config: GLMConfig | None) -> TiktokenTokenizer | None:
    """The tokenizer of a published directory: `tokenizer.model` (ranks), else `tokenizer.json`; None without either.

    Raises TokenizerError for files of another kind.
    """
    settings = directory / CONFIG_FILE
    files = {CONFIG_FILE: read_vocabulary(settings)} if settings.is_file() else {}
    ranks, described = directory / RANKS_FILE, directory / JSON_FILE
    if ranks.is_file():
        model = RankVocabulary(read_vocabulary(ranks), source=str(ranks))
        check_entries(str(ranks), model.size, None if config is None else config.vocab_size, _ENTRIES)
        specials = _declared(files.get(CONFIG_FILE), settings, model.size)
        specials = specials or {name: model.size + number for number, name in enumerate(SPECIAL_TOKENS)}
        return TiktokenTokenizer(model, specials, _roles(specials, ranks), opening=OPENING, beside=files)
    if described.is_file():
        plain = JsonVocabulary(read_vocabulary(described), source=str(described))
        roles = _roles(plain.specials, described)
        return TiktokenTokenizer(plain, plain.specials, roles, opening=OPENING, spaced=False, beside=files)
    return None


def _declared(data: bytes | None, path: Path, size: int) -> dict[str, int]:
    """The special tokens that a tokenizer_config.json puts behind the vocabulary; empty when it says nothing."""
    if data is None:
        return {}
    values = parse_json(decode_vocabulary(data, str(path)), str(path))
    try:
        declared = values.get("added_tokens_decoder") or {}
        specials = {str(entry["content"]): int(index) for index, entry in declared.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise TokenizerError(f"{path}: no table of added tokens by id; copy or download it again") from None
    inside = [name for name, index in specials.items() if index < size]
    if inside:
        raise TokenizerError(f"{path}: {inside[0]!r} has the id {specials[inside[0]]} of an ordinary token")
    return specials


def _roles(specials: Mapping[str, int], path: Path) -> SpecialIds:
    missing = [name for name in ("<|endoftext|>", "[MASK]", *OPENING, "<eop>") if name not in specials]
    if missing:
        raise TokenizerError(
            f"{path}: the special token {missing[0]!r} is missing; give the directory of a GLM-4 model"
        )
    end = specials["<|endoftext|>"]
    return SpecialIds(
        pad=end,
        eos=end,
        cls=None,
        mask=specials["[MASK]"],
        smask=specials.get("[sMASK]"),
        gmask=specials["[gMASK]"],
        sop=specials["<sop>"],
        eop=specials["<eop>"],
    )


class _JsonCalls(RoleTemplate):
    """A call of a tool is its name and, on the next line, its parameters as JSON."""

    opening = "".join(OPENING)
    opened_turns = False

    def read_call(self, content: str) -> object:
        try:
            parameters: object = json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError("its parameters are not JSON") from None
        return parameters


class SelfDescribingTemplate(_JsonCalls):
    """GLM-4-9B: tools become a system message in which the model is told who it is; messages without content vanish.

    own_name: the model's name there. The first release wrote "GhatGLM", later ones "ChatGLM".
    """

    name = "GLM-4-9B"

    def __init__(self, own_name: str = "GhatGLM") -> None:
        self._own_name = own_name

    def expand(self, messages: Sequence[Message]) -> list[Message]:
        written: list[Message] = []
        for message in messages:
            if message.tools:
                sections = tool_sections(message.tools, self.name)
                written.append(Message("system", self_description(self._own_name) + "\n\n# 可用工具" + sections))
            if message.content:
                written.append(Message(message.role, message.content, message.metadata))
        return written


class ToolsFirstTemplate(_JsonCalls):
    """GLM-4-0414: all tools in a first system message, then the system messages, then the others in order."""

    name = "GLM-4-0414"

    def expand(self, messages: Sequence[Message]) -> list[Message]:
        tools = [tool for message in messages for tool in message.tools or ()]
        written = [Message("system", "# 可用工具\n\n" + functions(tools))] if tools else []
        kept = [message for message in messages if message.content or not message.tools]
        for wanted in (True, False):
            chosen = (message for message in kept if (message.role == "system") is wanted)
            written += [Message(message.role, message.content, message.metadata) for message in chosen]
        return written


CHAT = SelfDescribingTemplate()
CHAT_0414 = ToolsFirstTemplate()
