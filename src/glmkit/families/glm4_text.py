"""Tokenizer and conversations of GLM-4-9B and GLM-4-0414.

Sources: `THUDM/glm-4-9b-chat:tokenization_chatglm.py` and `modeling_chatglm.py` (June 2024), the special tokens of its
`tokenizer_config.json`; for GLM-4-0414 its `chat_template`. The texts about tools are what the models were trained on,
so they stay in Chinese, word for word.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import RequestError, TokenizerError
from glmkit.tokenizer.added_tokens import read_added_tokens
from glmkit.tokenizer.bpe_ranks import RankVocabulary
from glmkit.tokenizer.byte_bpe import JsonVocabulary
from glmkit.tokenizer.byte_level import ByteLevelTokenizer
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Limits
from glmkit.tokenizer.vocabulary_files import (
    check_entries,
    decode_vocabulary,
    parse_json,
    read_vocabulary,
)

from .common.role_chat import RoleTemplate, Written
from .common.role_tuning import RoleTuning

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


def load_tokenizer(directory: Path, config: GLMConfig | None) -> ByteLevelTokenizer | None:
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
        tokenizer = ByteLevelTokenizer(model, specials, _roles(specials, ranks), opening=OPENING, beside=files)
        tokenizer.extend(read_added_tokens(directory, tokenizer, None if config is None else config.vocab_size))
        return tokenizer
    if described.is_file():
        plain = JsonVocabulary(read_vocabulary(described), source=str(described))
        specials = {name: index for name, index in plain.specials.items() if name in SPECIAL_TOKENS}
        roles = _roles(specials, described)
        tokenizer = ByteLevelTokenizer(plain, specials, roles, opening=OPENING, spaced=False, beside=files)
        tokenizer.extend(read_added_tokens(directory, tokenizer, None if config is None else config.vocab_size))
        return tokenizer
    return None


def _declared(data: bytes | None, path: Path, size: int) -> dict[str, int]:
    """The published special tokens where a tokenizer_config.json puts them; empty when it says nothing.

    What else it puts there is read as added tokens are.
    """
    if data is None:
        return {}
    values = parse_json(decode_vocabulary(data, str(path)), str(path))
    try:
        if not isinstance(values, dict):
            raise TypeError
        declared = values.get("added_tokens_decoder") or {}
        found = {str(entry["content"]): int(index) for index, entry in declared.items()}
        specials = {name: index for name, index in found.items() if name in SPECIAL_TOKENS}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise TokenizerError(f"{path}: no table of added tokens by id", step="copy or download it again") from None
    inside = [name for name, index in specials.items() if index < size]
    if inside:
        raise TokenizerError(f"{path}: {inside[0]!r} has the id {specials[inside[0]]} of an ordinary token")
    return specials


def _roles(specials: Mapping[str, int], path: Path) -> SpecialIds:
    missing = [name for name in ("<|endoftext|>", "[MASK]", *OPENING, "<eop>") if name not in specials]
    if missing:
        raise TokenizerError(
            f"{path}: the special token {missing[0]!r} is missing", step="give the directory of a GLM-4 model"
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


# --- tools ------------------------------------------------------------------------------------------------------------

_ASK_FOR_JSON = "在调用上述函数时，请使用 Json 格式表示调用的参数。"

_BUILT_IN = {
    "python": (
        "当你向 `python` 发送包含 Python 代码的消息时，该代码将会在一个有状态的 Jupyter notebook 环境中执行。\n"
        "`python` 返回代码执行的输出，或在执行 60 秒后返回超时。\n"
        "`/mnt/data` 将会持久化存储你的文件。在此会话中，`python` 无法访问互联网。"
        "不要使用 `python` 进行任何网络请求或者在线 API 调用，这些在线内容的访问将不会成功。"
    ),
    "simple_browser": (
        "你可以使用 `simple_browser` 工具。该工具支持以下函数：\n"
        "`search(query: str, recency_days: int)`：使用搜索引擎进行查询并显示结果，"
        "可以使用 `recency_days` 参数控制搜索内容的时效性。\n"
        "`mclick(ids: list[int])`：获取一系列指定 id 的页面内容。每次调用时，须选择3-10个页面。"
        "选择多个角度的页面，同时尽可能选择可信任的信息来源。"
        "考虑到部分页面是无法加载的，你也可以多打开一些可能有用的页面而不用担心内容过多。\n"
        "`open_url(url: str)`：打开指定的 URL。\n\n"
        "使用 `【{引用 id}†{引用文本}】` 来引用内容。\n\n"
        "操作步骤：1. 使用 `search` 来获得信息列表; 2. 使用 `mclick` 来获取指定 ID 页面的内容; "
        "3. 根据获得的内容进行回复。在回复中应当引用信息来源。\n"
        " 如果用户提供了 URL，也可以用 `open_url` 直接打开页面。\n"
        "如果初次搜索结果没有找到合适的信息，也可以再次使用 `search` 进行搜索。"
    ),
    "cogview": (
        "如果用户的请求中包含了对图像的描述，你可以使用 `cogview` 来生成图像并展示给用户。"
        "你需要向 `cogview` 发送图像描述，规则：\n"
        "- 发送给 `cogview` 的消息必须使用英语。用户的中文描述必须完全翻译为英语。\n"
        "- 应当尽可能详细地描述图像生成的需求，需求描述约 100 英文单词。\n"
        "- 保持用户原始描述的意图。不要虚构内容或者没见过的人物。\n"
        "- 如无特殊说明，所在地为中国，持有中国立场并遵循中国社会主义价值观。"
    ),
}


_SELF_DESCRIPTION = (  # the first sentence of the tool prompt, which tells the model who it is
    "你是一个名为 {} 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。"
)


def _section(tool: Mapping[str, object], model: str) -> str:
    """A tool: {"type": "function", "function": {...}} or the type of a built-in one. Raises RequestError for others."""
    kind = tool.get("type")
    if kind == "function":
        return _function(tool.get("function"))
    if kind not in _BUILT_IN:
        known = ", ".join(["function", *_BUILT_IN])
        raise RequestError(f"a tool has the type {kind!r}; {model} knows {known}")
    return f"## {kind}\n\n{_BUILT_IN[str(kind)]}"


def _function(function: Any) -> str:
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"a function to call must be an object with a name, not {function!r}")
    described = json.dumps(function, ensure_ascii=False, indent=4)
    return f"## {function['name']}\n\n{described}\n{_ASK_FOR_JSON}"


# --- conversations ----------------------------------------------------------------------------------------------------


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

    def write_call(self, values: Mapping[str, object]) -> str:
        return json.dumps(values, ensure_ascii=False)


def _has_outcome(calls: Sequence[Message]) -> bool:
    """True when an observation stands behind these calls of the assistant."""
    return next((message.role for message in calls if message.role != "assistant"), None) == "observation"


class SelfDescribingTemplate(_JsonCalls):
    """GLM-4-9B: tools become a system message in which the model is told who it is; messages without content vanish.

    A call without content stays where its outcome follows, though the published code leaves it out as well.

    own_name: the model's name there. The first release wrote "GhatGLM", later ones "ChatGLM".
    """

    name = "GLM-4-9B"

    def __init__(self, own_name: str = "GhatGLM") -> None:
        self._own_name = own_name

    def expand(self, messages: Sequence[Message]) -> list[Written]:
        written: list[Written] = []
        for number, message in enumerate(messages):
            if message.tools:
                sections = "".join(f"\n\n{_section(tool, self.name)}" for tool in message.tools)
                described = _SELF_DESCRIPTION.format(self._own_name)
                written.append(Written(Message("system", f"{described}\n\n# 可用工具{sections}"), None))
            if message.content or (message.metadata and _has_outcome(messages[number:])):
                written.append(Written(Message(message.role, message.content, message.metadata), number))
        return written


class ToolsFirstTemplate(_JsonCalls):
    """GLM-4-0414: all tools in a first system message, then the system messages, then the others in order."""

    name = "GLM-4-0414"

    def expand(self, messages: Sequence[Message]) -> list[Written]:
        tools = [tool for message in messages for tool in message.tools or ()]
        functions = "\n".join(_function(tool.get("function") or tool) for tool in tools)  # with or without "function"
        written = [Written(Message("system", f"# 可用工具\n\n{functions}"), None)] if tools else []
        kept = [Written(message, i) for i, message in enumerate(messages) if message.content or not message.tools]
        for wanted in (True, False):
            chosen = ((m, i) for m, i in kept if (m.role == "system") is wanted)
            written += [Written(Message(m.role, m.content, m.metadata), i) for m, i in chosen]
        return written


CHAT = SelfDescribingTemplate()
CHAT_0414 = ToolsFirstTemplate()
# `THUDM/GLM-4:finetune/configs`
_LIMITS = Limits(source=512, target=512)
TUNING = RoleTuning(template=CHAT, limits=_LIMITS, end="<|user|>", last_tag="<|assistant|>")
TUNING_0414 = RoleTuning(template=CHAT_0414, limits=_LIMITS, end="<|user|>", last_tag="<|assistant|>")
