"""A tokenizer of the core as transformers' tools use one. Every id comes from the core.

What differs between the published classes is in `published_tokenizers.py`.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import BatchEncoding
from transformers.utils import PaddingStrategy

from glmkit.checkpoint.hub import local_directory
from glmkit.errors import RequestError, TokenizerError
from glmkit.families.common.config_keys import FAMILY_KEY
from glmkit.families.family import Family
from glmkit.families.vocabularies import find_tokenizer
from glmkit.small_files import parse_small_json, read_small
from glmkit.tokenizer.chat_template import ChatTemplate
from glmkit.tokenizer.inputs import InputTokenizer

from .templated import TemplatedTokenizer

CONFIG_FILE = "tokenizer_config.json"
# Role in the core -> attribute of the published classes.
_ROLES = {
    "eos": "eos_token", "pad": "pad_token", "unk": "unk_token", "cls": "cls_token", "sep": "sep_token",
    "mask": "mask_token", "gmask": "gmask_token", "smask": "smask_token", "sop": "sop_token", "eop": "eop_token",
}  # fmt: skip
_STANDARD = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# Settings of a tokenizer_config.json that the core's own tokenizer has read, or that name what is no text setting.
_DECLARED = ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens")  # written again as they were
_NOT_KEPT = ("tokenizer_class", "backend", *_DECLARED)
_DECIDED = {"num_image_tokens", FAMILY_KEY}  # facts of the files
_HUB_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "token", "use_auth_token", "resume_download", "proxies",
    "_commit_hash", "trust_remote_code", "use_fast", "code_revision", "config", "_from_auto", "_from_pipeline",
)  # fmt: skip


class CoreTokenizer(TemplatedTokenizer):
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
        self._known = {}
        self.declared: dict[str, Any] = {}  # what the settings that were read say of tokens
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
        read = {**_template_beside(directory), **read_settings(directory)}
        settings = {key: value for key, value in read.items() if key not in _NOT_KEPT}
        if family is not None:
            settings[FAMILY_KEY] = family.name
        given = {key: options.pop(key) for key in _STANDARD if key in options}
        made = CoreTokenizer.class_of(family, core)(
            core, None if family is None else family.chat, **{**settings, **options, "name_or_path": named}
        )
        made.declared = {key: read[key] for key in _DECLARED if key in read}
        for key in options.keys() & _DECIDED:
            if options[key] != made.init_kwargs.get(key):
                wanted = f"{key} is {options[key]!r}, but the files here say {made.init_kwargs.get(key)!r}"
                raise RequestError(wanted, step="give the directory of the release that is meant", param=key)
        for key, token in given.items():
            setattr(made, key, token)
        return made

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
        return self.get_vocab().get(token) if found is None else found

    def _convert_token_to_id(self, token: str) -> int | None:
        found = self._find(token)
        return self.unk_token_id if found is None and token != str(self.unk_token) else found

    def _convert_id_to_token(self, index: int) -> str:
        name: str = self.core.id_to_token(index)
        return name

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens as `tokenize` names them."""
        return self._decode(self.convert_tokens_to_ids(tokens))

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

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: Any = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Cut as the core does. Raises TokenizerError where nothing would be left of what may be cut."""
        strategy = getattr(truncation_strategy, "value", truncation_strategy)
        cut: tuple[list[int], list[int] | None, list[int]]
        cut = super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, strategy, stride)
        if num_tokens_to_remove <= 0 or strategy == "do_not_truncate" or not isinstance(self.core, InputTokenizer):
            return cut
        room = len(ids) + len(pair_ids or []) - num_tokens_to_remove
        return (*self.core.truncate(ids, pair_ids, room, side=self.truncation_side, strategy=strategy), cut[2])

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
        settings = read_settings(Path(save_directory)) if kept.is_file() else None
        before = set(os.listdir(save_directory))
        self.core.save(save_directory)
        if settings is not None:  # some vocabularies bring the file that was read
            written = json.dumps({**settings, **self.declared}, indent=2, sort_keys=True, ensure_ascii=False)
            kept.write_text(written + "\n", encoding="utf-8")
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

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STANDARD and value is not None and "core" in self.__dict__:
            self._add_tokens([value])
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        base = name.removesuffix("_id")
        if base.endswith("_token") and base not in _STANDARD and "core" in self.__dict__:
            token = self._special_names().get(base)
            if token is not None:
                return self._find(token) if base != name else token
        return super().__getattr__(name)

    def get_command(self, token: str) -> int:
        """The id of a special token by its name or its role. Raises RequestError for a name that is none."""
        roles, named = self._special_names(), self.special_tokens
        role = token.removeprefix("<").removesuffix(">")
        found = named.get(token, named.get(roles.get(f"{role}_token", "")))
        if found is None and token == "<bos>":
            found = self._find("<s>")
        kind_of = getattr(self.core, "kind_of", None)
        if found is None and kind_of is not None and (index := self._find(token)) is not None:
            found = index if kind_of(index) in ("special", "added") else None
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


class _ByName:
    """Ids by token, tokens by id."""

    def __init__(self, owner: CoreTokenizer) -> None:
        self._owner = owner
        self.num_tokens = owner.vocab_size

    def __getitem__(self, key: str | int) -> Any:
        return self._owner.get_command(key) if isinstance(key, str) else self._owner.core.id_to_token(key)


def _template_beside(directory: Path) -> dict[str, str]:
    """The chat template that lies beside the settings."""
    path = directory / "chat_template.jinja"
    return {"chat_template": read_small(path, TokenizerError).decode("utf-8", "replace")} if path.is_file() else {}


def read_settings(directory: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json, empty without one. Raises TokenizerError for a damaged file."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        return {}
    values = parse_small_json(read_small(path, TokenizerError), str(path), TokenizerError)
    if not isinstance(values, dict):
        raise TokenizerError(f"{path}: holds {type(values).__name__}, not an object", step="copy it again")
    return values
