"""A tokenizer of the core as transformers' tools use one. Every id comes from the core.

What differs between the published classes is in `published_tokenizers.py`.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.utils import PaddingStrategy

from glmkit.checkpoint.hub import local_directory
from glmkit.errors import RequestError, TokenizerError
from glmkit.families.family import Family
from glmkit.families.vocabularies import find_tokenizer
from glmkit.small_files import parse_small_json, read_small
from glmkit.tokenizer.chat_template import ChatTemplate, Message, to_messages
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.tools import offer_tools

CONFIG_FILE = "tokenizer_config.json"
# Role in the core -> attribute of the published classes.
_ROLES = {
    "eos": "eos_token", "pad": "pad_token", "unk": "unk_token", "cls": "cls_token", "sep": "sep_token",
    "mask": "mask_token", "gmask": "gmask_token", "smask": "smask_token", "sop": "sop_token", "eop": "eop_token",
}  # fmt: skip
_STANDARD = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# Settings of a tokenizer_config.json that the core's own tokenizer has read, or that name what is no text setting.
_NOT_KEPT = ("tokenizer_class", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "backend")
_HUB_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "token", "use_auth_token", "resume_download", "proxies",
    "_commit_hash", "trust_remote_code", "use_fast", "code_revision", "config", "_from_auto", "_from_pipeline",
)  # fmt: skip


class CoreTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer of the core as transformers' tools use one.

    core: the tokenizer. template: how its models were taught to chat, None when they were not.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask", "position_ids"]
    counts_positions = True  # whether rows carry position_ids
    # The class for a family's tokenizer: set where the classes are, below this one.
    class_of: ClassVar[Callable[[Family | None, Any], "type[CoreTokenizer]"]]

    def __init__(self, core: Any, template: ChatTemplate | None = None, **settings: Any) -> None:
        """settings: of a tokenizer_config.json; they are written again, and special ids are those of the core."""
        self.core, self.template = core, template
        self._vocabulary: dict[str, int] | None = None
        names = {name: token for name, token in self._special_names().items() if name in _STANDARD}
        for key in _STANDARD:
            settings.pop(key, None)
        settings.setdefault("padding_side", getattr(core, "padding_side", "left"))
        settings.setdefault("truncation_side", getattr(core, "truncation_side", "right"))
        if template is not None:
            settings.setdefault("chat_template", template.jinja)
        super().__init__(**{**settings, **names})

    def _special_names(self) -> dict[str, str]:
        special = self.core.special
        roles = {attribute: getattr(special, role) for role, attribute in _ROLES.items()}
        return {name: self.core.id_to_token(index) for name, index in roles.items() if index is not None}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **options: Any
    ) -> "CoreTokenizer":
        """The tokenizer of a directory or a hub name, of the class that its files ask for.

        options: settings of a tokenizer_config.json, such as padding_side, chat_template or num_image_tokens. Raises
        TokenizerError and CheckpointError as the core does; nothing in the directory is executed.
        """
        if options.pop("subfolder", ""):
            raise RequestError("subfolder is not taken", step="give the path of the folder itself", param="subfolder")
        revision = options.pop("revision", None)
        options = {name: value for name, value in options.items() if name not in _HUB_OPTIONS}
        named = os.fspath(pretrained_model_name_or_path)
        if revision not in (None, "main") and not Path(named).is_dir():
            named = f"{named}@{revision}"
        directory = local_directory(named, need="tokenizer", param="pretrained_model_name_or_path")
        family, core = find_tokenizer(directory)
        settings = {key: value for key, value in read_settings(directory).items() if key not in _NOT_KEPT}
        made = CoreTokenizer.class_of(family, core)
        return made(core, None if family is None else family.chat, **{**settings, **options, "name_or_path": named})

    # --- ids ----------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return int(self.core.vocab_size)

    def get_vocab(self) -> dict[str, int]:
        """Every token as people can read it, and its id."""
        if self._vocabulary is None:
            self._vocabulary = {self.core.id_to_token(index): index for index in range(self.vocab_size)}
        return dict(self._vocabulary)

    def _add_tokens(self, new_tokens: Iterable[Any], special_tokens: bool = False) -> int:
        """Refuse tokens that the vocabulary does not have; none is ever added here."""
        unknown = [str(token) for token in new_tokens if self._find(str(token)) is None]
        if unknown:
            raise TokenizerError(
                f"{unknown[0]!r} is no token of this vocabulary",
                step="prepare a tokenizer with new tokens by glm finetune (data.new_tokens)",
            )
        return 0

    def _find(self, token: str) -> int | None:
        find = getattr(self.core, "token_to_id", None)
        found = find(token) if find is not None else None
        if found is None and find is None:
            found = self.get_vocab().get(token)
        return found

    def _convert_token_to_id(self, token: str) -> int | None:
        found = self._find(token)
        return self.unk_token_id if found is None and token != str(self.unk_token) else found

    def _convert_id_to_token(self, index: int) -> str:
        name: str = self.core.id_to_token(index)
        return name

    def tokenize(self, text: str, **options: Any) -> list[str]:
        """Tokens of a text as people can read them."""
        return [self.core.id_to_token(index) for index in self._ids(text)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.core.encode(text, specials=True)
        return ids

    def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """Encode by the core, and let transformers cut, close and pad what comes out."""
        words = bool(options.get("is_split_into_words"))
        return super()._encode_plus(self._as_ids(text, words), self._as_ids(text_pair, words), **options)

    def _as_ids(self, text: Any, words: bool) -> Any:
        """Texts as lists of ids, in whatever lists and pairs they come; an empty one stays a text."""
        if isinstance(text, str):
            return self._ids(text) or ""
        if words and isinstance(text, list | tuple) and text and isinstance(text[0], str):
            return [index for word in text for index in self._ids(word)] or ""
        if isinstance(text, tuple) and len(text) == 2 and text[1] is None:
            return self._as_ids(text[0], words)
        if isinstance(text, list | tuple) and text and isinstance(text[0], str | list | tuple):
            return type(text)(self._as_ids(part, words) for part in text)
        return text

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids with what the model expects around them; the second ones are an answer or a second text."""
        if isinstance(self.core, InputTokenizer):
            return self.core.build_inputs(token_ids_0, token_ids_1)
        return [*token_ids_0, *(token_ids_1 or [])]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Zeros: these models have no such ids."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where a special id stands."""
        special = {index for index in vars(self.core.special).values() if index is not None}
        row = token_ids_0 if already_has_special_tokens else None
        row = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1) if row is None else row
        return [int(index in special) for index in row]

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        text: str = self.core.decode(ids, skip_specials=skip_special_tokens)
        return text

    # --- padding ------------------------------------------------------------------------------------------------------

    def _pad(
        self,
        encoded_inputs: Any,
        max_length: int | None = None,
        padding_strategy: Any = "do_not_pad",
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> Any:
        """Pad a row; positions count from its first real token."""
        if self.counts_positions and "position_ids" not in encoded_inputs:
            encoded_inputs["position_ids"] = list(range(len(encoded_inputs["input_ids"])))
        padded = super()._pad(
            encoded_inputs,
            max_length=max_length,
            padding_strategy=PaddingStrategy(padding_strategy),
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
        )
        missing = len(padded["input_ids"]) - len(padded.get("position_ids", padded["input_ids"]))
        if missing > 0:
            zeros, own = [0] * missing, padded["position_ids"]
            left = (padding_side or self.padding_side) == "left"
            padded["position_ids"] = zeros + own if left else own + zeros
        return padded

    # --- files --------------------------------------------------------------------------------------------------------

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary's files, byte for byte as they were read."""
        kept = Path(save_directory) / CONFIG_FILE
        settings = kept.read_bytes() if kept.is_file() else None
        before = set(os.listdir(save_directory))
        self.core.save(save_directory)
        if settings is not None:  # some vocabularies bring the file that was read
            kept.write_bytes(settings)
        return tuple(str(Path(save_directory) / name) for name in sorted(set(os.listdir(save_directory)) - before))

    # --- names that 5.x no longer has, and stand-ins for objects of the published classes -----------------------------

    def encode_plus(self, text: Any, *arguments: Any, **options: Any) -> BatchEncoding:
        """Encode one text, as the tokenizer when it is called."""
        return self(text, *arguments, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Any, *arguments: Any, **options: Any) -> BatchEncoding:
        """Encode several texts, as the tokenizer when it is called."""
        return self(batch_text_or_text_pairs, *arguments, **options)

    @property
    def additional_special_tokens(self) -> list[str]:
        """Names of the special tokens without a role of transformers'."""
        named = self._special_names()
        return [token for name, token in named.items() if name not in _STANDARD]

    def __getattr__(self, name: str) -> Any:
        base = name.removesuffix("_id")
        if base.endswith("_token") and base not in _STANDARD and "core" in self.__dict__:
            token = self._special_names().get(base)
            if token is not None:
                return self._find(token) if base != name else token
        return super().__getattr__(name)

    def get_command(self, token: str) -> int:
        """The id of a special token by its name. Raises RequestError for a name that is none."""
        named = {f"<{attribute.removesuffix('_token')}>": token for attribute, token in self._special_names().items()}
        found = self._find(named.get(token, token)) if token not in ("<bos>",) else self._find("<s>")
        if found is None:
            raise RequestError(f"{token!r} is no special token of this tokenizer", param="token")
        return found

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens by name."""
        return {token: self._require(token) for token in self._special_names().values()}

    def _require(self, token: str) -> int:
        found = self._find(token)
        assert found is not None, token
        return found

    @property
    def n_words(self) -> int:
        """Number of ids."""
        return self.vocab_size

    @property
    def tokenizer(self) -> Self:
        """The tokenizer itself, where the published classes had an inner one."""
        return self

    @property
    def sp_tokenizer(self) -> "_ByName":
        """A stand-in that gives ids by token and tokens by id."""
        return _ByName(self)

    # --- conversations ------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The prompt of a conversation as the model was trained on it, ids or text; several in a list give a batch.

        Role tokens come from the roles, never from texts. A chat_template of one's own is rendered by transformers.
        Raises RequestError for a conversation that the model has no form for.
        """
        own = self.template
        if own is None or chat_template is not None or self.chat_template != own.jinja:
            return super().apply_chat_template(
                conversation, tools=tools, documents=documents, chat_template=chat_template,
                add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message,
                tokenize=tokenize, padding=padding, truncation=truncation, max_length=max_length,
                return_tensors=return_tensors, return_dict=return_dict,
                return_assistant_tokens_mask=return_assistant_tokens_mask, tokenizer_kwargs=tokenizer_kwargs, **options,
            )  # fmt: skip
        if documents is not None or continue_final_message:
            name = "documents" if documents is not None else "continue_final_message"
            raise RequestError(f"{name} has no form in {own.name}", step="leave it out", param=name)
        batched = isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list)
        several = [to_messages(one) for one in (conversation if batched else [conversation])]
        if tools:
            several = [offer_tools(messages, own, list(tools), None) for messages in several]
        if not tokenize:
            texts = [own.text(messages, add_generation_prompt=add_generation_prompt) for messages in several]
            return texts if batched else texts[0]
        rows = [own.build(self.core, messages, add_generation_prompt=add_generation_prompt) for messages in several]
        if truncation and max_length is not None:
            left = self.truncation_side == "left"
            rows = [row[-max_length:] if left else row[:max_length] for row in rows]
        encoded = self.pad({"input_ids": rows}, padding=padding, max_length=max_length, return_tensors=None)
        if return_assistant_tokens_mask:
            encoded["assistant_masks"] = [
                _assistant_mask(own, self.core, messages, row) for messages, row in zip(several, rows, strict=True)
            ]
        if not batched and not return_tensors:
            encoded = BatchEncoding({key: value[0] for key, value in encoded.items()})
        elif return_tensors:
            encoded = BatchEncoding(dict(encoded), tensor_type=return_tensors)
        return encoded if return_dict else encoded["input_ids"]


class _ByName:
    """Ids by token, tokens by id."""

    def __init__(self, owner: CoreTokenizer) -> None:
        self._owner = owner
        self.num_tokens = owner.vocab_size

    def __getitem__(self, key: str | int) -> Any:
        return self._owner.get_command(key) if isinstance(key, str) else self._owner.core.id_to_token(key)


def read_settings(directory: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json, empty without one. Raises TokenizerError for a damaged file."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        return {}
    values = parse_small_json(read_small(path, TokenizerError), str(path), TokenizerError)
    if not isinstance(values, dict):
        raise TokenizerError(f"{path}: holds {type(values).__name__}, not an object", step="copy it again")
    return values


def _assistant_mask(
    template: ChatTemplate, core: InputTokenizer, messages: Sequence[Message], row: Sequence[int]
) -> list[int]:
    """1 on the ids of the assistant's messages. Raises RequestError where a longer conversation begins otherwise."""
    mask = [0] * len(row)
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = template.build(core, messages[:place], add_generation_prompt=True)
        after = template.build(core, messages[: place + 1], add_generation_prompt=False)
        if list(row[: len(before)]) != before:
            raise RequestError(
                f"answers cannot be marked in {template.name}'s conversations: a longer one begins otherwise",
                step="use glm finetune, which counts answers alone",
                param="return_assistant_tokens_mask",
            )
        end = min(len(after), len(row))
        mask[len(before) : end] = [1] * max(0, end - len(before))
    return mask
