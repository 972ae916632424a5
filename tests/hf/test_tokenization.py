"""Tokenizers under the published names: recorded ids, batches, names, conversations and blanks."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, TextIteratorStreamer

import glmkit.hf  # noqa: F401
from glmkit.errors import DataError, RequestError, TokenizerError
from glmkit.families.vocabularies import load_tokenizer
from glmkit.tokenizer.chat_template import to_messages
from support.published_scripts import release
from support.shared import shared_dir

# release -> folder of its recordings
RECORDED = {
    "chatglm-6b": "chatglm-6b",
    "chatglm2-6b": "chatglm2-6b",
    "chatglm3-6b": "chatglm3-6b",
    "glm-4-9b-chat": "glm-4-9b",
    "glm-large-chinese": "glm-chinese",
    "glm-10b": "glm-gpt2",
}


LINES = ("books", "tinyshakespeare")
RECORDED_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def opened(name: str, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(release(name), **options)


known = cache(opened)  # for tests that change nothing


@cache
def recorded(name: str) -> dict[str, Any]:
    cases: dict[str, Any] = json.loads(
        (shared_dir("fixtures", "tokenizers", RECORDED[name]) / "cases.json").read_text()
    )
    return cases


def plain(value: Any) -> Any:
    """Nested lists of whole numbers of whatever a call gives."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    return np.asarray(value).astype(int).tolist() if isinstance(value, np.ndarray | torch.Tensor) else int(value)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_texts(name: str) -> None:
    tokenizer, count = known(name), 0
    for case in recorded(name)["cases"]:
        if not isinstance(case.get("ids"), list):
            continue
        count += 1
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]
        if isinstance(case.get("ids_special"), list):
            assert tokenizer.encode(case["text"]) == case["ids_special"], case["text"]
        if isinstance(case.get("decoded"), str):
            assert tokenizer.decode(case["ids"]) == case["decoded"], case["text"]
    assert count > 90


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.sampled(3)
def test_streamed_texts_are_the_decoded_ones(name: str) -> None:
    """Token by token, indentation and line breaks too; the prompt is left out where that is asked for."""
    tokenizer = known(name)
    for case in recorded(name)["cases"]:
        if not isinstance(case.get("ids_special"), list):
            continue
        for skip in (False, True):
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=skip)
            for _ in range(2):  # a streamer can be used again
                streamer.put(torch.tensor([[1, 2, 3]]))
                for index in case["ids_special"]:
                    streamer.put(torch.tensor([index]))
                streamer.end()
                assert "".join(streamer) == tokenizer.decode(case["ids_special"], skip_special_tokens=skip)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name in RECORDED for file in LINES])
@pytest.mark.sampled(6)
def test_lines_of_real_texts_have_the_cores_ids(name: str, file: str) -> None:
    tokenizer, core = known(name), load_tokenizer(release(name))
    if name in ("glm-large-chinese", "glm-10b"):
        core = tokenizer.core  # reads special strings as the hub's classes do
    path = next(iter(sorted(shared_dir("data", "text", file).rglob("*.txt"))), None)
    assert path is not None
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:200]
    found = tokenizer(lines, padding=True, return_tensors="pt")
    for line, row in zip(lines, found["input_ids"].tolist(), strict=True):
        wanted = core.encode_inputs(line, specials=True)
        assert (row[len(row) - len(wanted) :] if tokenizer.padding_side == "left" else row[: len(wanted)]) == wanted


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_batches(name: str) -> None:
    """Masks and positions too: (B,1,T,T) and (B,2,T) where ChatGLM-6B pads."""
    tokenizer, count = known(name), 0
    for case in recorded(name)["batches"]:
        out = case["out"]
        if "error" in out:
            continue
        texts = [case["texts"]] if "texts" in case else case["pair"]
        found = tokenizer(*texts, **case["kwargs"])
        for key, value in out.items():
            if key != "token_type_ids":
                assert plain(found[key]) in (value, value[:1] and value[0], [value]), (key, case["kwargs"])
                count += 1
    assert count > 5


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.sampled(2)
def test_recorded_truncation(name: str) -> None:
    """Where max_length does not hold the special tokens, the published classes cut nothing: ours is an error."""
    tokenizer, refused = opened(name), 0
    for case in recorded(name)["truncation"]:
        if not isinstance(case["ids_special"], list):  # no form for pairs
            continue
        texts = case["pair"] if "pair" in case else [case["text"]]
        tokenizer.truncation_side = case.get("truncation_side", recorded(name)["special"]["truncation_side"])
        options = {"truncation": case.get("strategy", True), "max_length": case.get("max_length", 100)}
        if len(case["ids_special"]) > options["max_length"]:
            refused += 1
            with pytest.raises(TokenizerError, match="max_length leaves"):
                tokenizer.encode(*texts, **options)
        else:
            assert tokenizer.encode(*texts, **options) == case["ids_special"]
        if "ids" in case:
            assert tokenizer.encode(*texts, add_special_tokens=False, **options) == case["ids"]
    assert 0 < refused < len(recorded(name)["truncation"])


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b"])
def test_recorded_commands(name: str) -> None:
    tokenizer = known(name)
    for token, index in recorded(name)["commands"].items():
        if isinstance(index, int):
            assert tokenizer.get_command(token) == index
        elif token not in ("<unk>", "<s>", "</s>", "<sop>", "<eop>"):  # names that other generations have
            with pytest.raises(RequestError, match="no special token"):
                tokenizer.get_command(token)
    assert set(RECORDED_ROLES) & set(tokenizer.special_tokens) == (set(RECORDED_ROLES) if name[7] == "3" else set())


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_names(name: str) -> None:
    tokenizer, special = known(name), recorded(name)["special"]
    for attribute, value in special["attributes"].items():
        ours = attribute in ("mask_token", "mask_token_id", "unk_token", "unk_token_id")
        if value is not None and not ours:
            assert getattr(tokenizer, attribute) == value, attribute
    assert len(tokenizer) == special["len"]
    for token, index in special.get("ids", {}).items():
        if index not in (None, tokenizer.unk_token_id):
            assert tokenizer.convert_tokens_to_ids(token) == index
    assert tokenizer.padding_side == special["padding_side"]


@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("damage", ["none", "no class", "no settings"])
@pytest.mark.parametrize("name", ["chatglm-6b", "glm-4-9b-chat", "glm-large-chinese"])
@pytest.mark.sampled(8)
def test_ours_whatever_is_said_of_remote_code(name: str, damage: str, trust: bool | None, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(release(name), folder)
    settings = folder / "tokenizer_config.json"
    if damage == "no settings":
        settings.unlink()
    elif damage == "no class":
        values = json.loads(settings.read_text())
        del values["tokenizer_class"]
        settings.write_text(json.dumps(values))
    options = {} if trust is None else {"trust_remote_code": trust}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    assert type(tokenizer).__module__.startswith("glmkit.hf")
    assert tokenizer.encode("你好") == load_tokenizer(release(name)).encode_inputs("你好", specials=True)  # type: ignore[attr-defined]


def test_names_that_are_gone_or_were_never_there() -> None:
    tokenizer = known("chatglm-6b")
    assert not hasattr(tokenizer, "build_prompt")
    assert tokenizer.encode_plus("a")["input_ids"] == tokenizer("a")["input_ids"]
    assert tokenizer.batch_encode_plus(["a", "b"])["input_ids"] == tokenizer(["a", "b"])["input_ids"]
    assert tokenizer.sp_tokenizer["[gMASK]"] == 130001
    assert tokenizer.get_command("<eos>") == 130005
    assert "[gMASK]" in tokenizer.additional_special_tokens
    later = known("chatglm2-6b")
    assert [later.get_command(name) for name in ("[gMASK]", "sop", "<bos>", "<eos>", "<pad>")] == [
        64790,
        64792,
        1,
        2,
        0,
    ]
    assert later.tokenizer.n_words == len(later)
    with pytest.raises(RequestError, match="<nothing>"):
        later.get_command("<nothing>")


def test_another_padding_token_is_taken() -> None:
    tokenizer = opened("chatglm2-6b")
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer(["a", "a longer one"], padding=True)["input_ids"][0][0] == 2
    right = tokenizer(["a", "a longer one"], padding=True, padding_side="right")
    assert right["attention_mask"][0][0] == 1
    assert right["position_ids"][0][:2] == [0, 1]


def test_a_pair_and_where_its_answer_begins() -> None:
    tokenizer = known("chatglm-6b")
    question, answer = (tokenizer.encode(text, add_special_tokens=False) for text in ("问题", "答案"))
    row = tokenizer.build_inputs_with_special_tokens(question, answer)
    assert row == [*question, 130001, 130004, *answer, 130005]
    assert row.index(tokenizer.bos_token_id) == len(question) + 1


# --- conversations ----------------------------------------------------------------------------------------------------


def test_recorded_prompts() -> None:
    tokenizer = known("chatglm2-6b")
    for case in recorded("chatglm2-6b")["chat"]:
        history = [tuple(pair) for pair in case["history"]]
        assert tokenizer.build_prompt(case["query"], history) == case["prompt"]
    tokenizer = known("chatglm3-6b")
    for case in recorded("chatglm3-6b")["chat"]:
        if "error" in case or "input_ids" not in case:
            continue
        found = tokenizer.build_chat_input(case["query"], history=case["history"], role=case["role"])
        assert found.input_ids.tolist() == case["input_ids"]
        assert found.to("cpu")["position_ids"].tolist() == case.get("position_ids", found["position_ids"].tolist())
    for name in ("chatglm3-6b", "glm-4-9b-chat"):
        tokenizer = known(name)
        for case in recorded(name)["messages"]:
            if "ids" in case:
                assert tokenizer.build_single_message(case["role"], case["metadata"], case["message"]) == case["ids"]


def test_recorded_templates_of_glm_4() -> None:
    tokenizer = known("glm-4-9b-chat")
    for case in recorded("glm-4-9b-chat")["chat"]:
        if "ids" not in case:
            continue
        found = tokenizer.apply_chat_template(case["conversation"], add_generation_prompt=True, return_dict=False)
        assert found == case["ids"]
        shown = tokenizer.apply_chat_template(case["conversation"], add_generation_prompt=True, tokenize=False)
        assert shown == case["text"]


CONVERSATION = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "<|user|> more"},
]


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat"])
def test_a_template_gives_the_cores_ids_and_marks_answers(name: str) -> None:
    tokenizer = known(name)
    core, template = tokenizer.core, tokenizer.template
    wanted = template.build(core, to_messages(CONVERSATION))
    found = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_tensors="pt")
    assert found["input_ids"].tolist() == [wanted]
    marking = {"return_assistant_tokens_mask": True, "add_generation_prompt": False}
    if name == "chatglm-6b":  # its first turn is written otherwise once there is a second one
        with pytest.raises(RequestError, match="answers"):
            tokenizer.apply_chat_template(CONVERSATION[:2], **marking)
    else:
        whole = tokenizer.apply_chat_template(CONVERSATION[:2], **marking)
        marked = [index for index, mark in zip(whole["input_ids"], whole["assistant_masks"], strict=True) if mark]
        assert core.decode(marked, skip_specials=False).strip() == "Hello!"
    several = tokenizer.apply_chat_template([CONVERSATION, CONVERSATION[:1]], padding=True, add_generation_prompt=True)
    assert several["input_ids"][0] == wanted
    assert len(several["input_ids"][1]) == len(wanted)


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat"])
def test_tables_of_conversations_and_trainers(name: str) -> None:
    """Fields without a value are none; trainers look for the marks around answers."""
    tokenizer = known(name)
    table = [{**turn, "tool_calls": None, "name": None} for turn in CONVERSATION]
    assert tokenizer.apply_chat_template(table) == tokenizer.apply_chat_template(CONVERSATION)
    assert "{% generation %}" in tokenizer.chat_template
    prompt, whole = (
        tokenizer.apply_chat_template(CONVERSATION[:count], add_generation_prompt=count == 1)["input_ids"]
        for count in (1, 2)
    )
    assert whole[: len(prompt)] == prompt


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat"])
def test_the_jinja_form_writes_the_same_text(name: str) -> None:
    tokenizer = known(name)
    own = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    rendered = tokenizer.apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=True, chat_template=tokenizer.chat_template
    )
    assert rendered == own


# --- blanks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["glm-large-chinese", "glm-10b"])
def test_recorded_inputs_of_blanks(name: str) -> None:
    tokenizer, count = known(name), 0
    for case in recorded(name)["build_inputs_for_generation"]:
        out = case.get("out", {})
        if "error" in out or "texts" not in case:
            continue
        count += 1
        side = case["padding_side"]
        encoded = tokenizer(
            case["texts"], return_tensors="pt", padding=True, padding_side=side, **case["encode_kwargs"]
        )
        targets = {"targets": case["targets"]} if "targets" in case else {}
        found = tokenizer.build_inputs_for_generation(encoded, **targets, **case["kwargs"])
        for key, value in out.items():
            if key not in ("source_attention_mask", "target_attention_mask"):  # of the recorded copy of the code alone
                assert plain(found[key]) == value, (key, case["kwargs"])
    assert count > 3
    for case in recorded(name)["build_inputs_for_multiple_choice"]:
        out = case.get("out", {})
        if "error" in out:
            continue
        encoded = tokenizer(case["texts"], return_tensors="pt", padding=True, padding_side=case["padding_side"])
        found = tokenizer.build_inputs_for_multiple_choice(encoded, case["choices"])
        for key, value in out.items():
            assert plain(found[key]) == value, key
    assert tokenizer.mask_token_ids == [getattr(tokenizer, f"{mask}_token_id") for mask in ("mask", "smask", "gmask")]
    with pytest.raises(DataError, match="no mask"):
        tokenizer.build_inputs_for_generation(tokenizer("plain", return_tensors="pt"))
