"""Conversations of a tokenizer by the core's template, with the answers marked; streamed answers by its decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizer, TextStreamer

from glmkit.errors import RequestError
from glmkit.tokenizer.chat_template import ChatTemplate, Message, to_messages
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.tools import offer_tools

_PROBE = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


class TemplatedTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer whose conversations are those of a template of the core.

    core: the tokenizer. template: how its models were taught to chat, None when they were not.
    """

    core: Any
    template: ChatTemplate | None
    _known: dict[str, bool]  # Jinja templates -> whether they write what the core's template does

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

        Role tokens come from the roles, never from texts. A chat_template of one's own is rendered by transformers,
        one that means what the core's does is not. Raises RequestError for a conversation that the model has no form
        for, and for a template that writes special tokens where this tokenizer reads them as text.
        """
        own = self.template
        if own is None or not self._means_own(chat_template or self.chat_template):
            options |= {
                "tools": tools, "documents": documents, "chat_template": chat_template,
                "add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message,
            }  # fmt: skip
            if tokenize:
                self._check_rendered(super().apply_chat_template(conversation, tokenize=False, **options))
            return super().apply_chat_template(
                conversation, tokenize=tokenize, padding=padding, truncation=truncation, max_length=max_length,
                return_tensors=return_tensors, return_dict=return_dict,
                return_assistant_tokens_mask=return_assistant_tokens_mask, tokenizer_kwargs=tokenizer_kwargs, **options,
            )  # fmt: skip
        if documents is not None or continue_final_message:
            name = "documents" if documents is not None else "continue_final_message"
            raise RequestError(f"{name} has no form in {own.name}", step="leave it out", param=name)
        batched = isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list)
        several = [_to_messages(one) for one in (conversation if batched else [conversation])]
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

    def _means_own(self, jinja: Any) -> bool:
        """True for a Jinja template that writes a conversation as the core's template does, but for white space.

        Published directories have such ones, from which this tokenizer would make other ids than the model knows.
        """
        own = self.template
        if own is None or jinja in (None, own.jinja):
            return own is not None
        if not isinstance(jinja, str):
            return False
        if jinja not in self._known:
            text = own.text(to_messages(_PROBE))
            try:
                found = super().apply_chat_template(
                    _PROBE, chat_template=jinja, tokenize=False, add_generation_prompt=True
                )
            except Exception:  # whatever is wrong with the template is said when it is used
                found = ""
            self._known[jinja] = self._bare(found) == self._bare(text)
        return self._known[jinja]

    def _opening(self) -> list[str]:
        """Names of the special tokens around every text."""
        return [self.core.id_to_token(index) for index in self.build_inputs_with_special_tokens([])]

    def _bare(self, text: str) -> str:
        for name in self._opening():
            text = text.replace(name, "")
        return "".join(text.split())

    def _check_rendered(self, texts: str | list[str]) -> None:
        roles = [] if self.template is None else [f"<|{role}|>" for role in self.template.roles]
        for text in [texts] if isinstance(texts, str) else texts:
            ids = set(self.encode(text, add_special_tokens=False))
            for name in (*self._opening(), *roles):
                if name in text and self.convert_tokens_to_ids(name) not in ids:
                    raise RequestError(
                        f"the chat template writes {name!r}, which this tokenizer reads as text and not as a token",
                        step="leave chat_template out: the model's own form is used",
                        param="chat_template",
                    )


def _to_messages(conversation: Any) -> list[Message]:
    """Messages; fields without a value, which tables of conversations give every one, are left out."""
    turns = conversation if isinstance(conversation, list | tuple) else to_messages(conversation)
    return to_messages(
        {key: value for key, value in turn.items() if value is not None} if isinstance(turn, Mapping) else turn
        for turn in turns
    )


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


# --- streamers --------------------------------------------------------------------------------------------------------

_put, _end = TextStreamer.put, TextStreamer.end


def register_streaming() -> None:
    """Let transformers' streamers take the text of our tokenizers from the core's step-by-step decoder.

    They decode what they hold anew after every line break, where a SentencePiece vocabulary drops a space: code loses
    its indentation. Tokenizers of others are streamed as before.
    """
    TextStreamer.put, TextStreamer.end = _stream_put, _stream_end


def _stream_put(streamer: Any, value: Any) -> None:
    if not isinstance(streamer.tokenizer, TemplatedTokenizer):
        _put(streamer, value)
        return
    if value.dim() > 1 and len(value) > 1:
        raise ValueError("TextStreamer only supports batch size 1")  # as transformers says it
    if streamer.skip_prompt and streamer.next_tokens_are_prompt:
        streamer.next_tokens_are_prompt = False
        return
    streamer.on_finalized_text(_decoder(streamer).feed(value.flatten().tolist()))


def _stream_end(streamer: Any) -> None:
    if not isinstance(streamer.tokenizer, TemplatedTokenizer):
        _end(streamer)
        return
    text = _decoder(streamer).finish()
    del streamer.core_stream
    streamer.next_tokens_are_prompt = True
    streamer.on_finalized_text(text, stream_end=True)


def _decoder(streamer: Any) -> Any:
    """The core's decoder of the text that is being streamed."""
    if "core_stream" not in vars(streamer):
        skip = bool(streamer.decode_kwargs.get("skip_special_tokens"))
        streamer.core_stream = streamer.tokenizer.core.stream(skip_specials=skip)
    return streamer.core_stream
