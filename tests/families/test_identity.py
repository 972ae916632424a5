"""One family out of several with the same tensor names: what in a directory says which, and when that is a guess."""

import json
from typing import Any

import pytest

from glmkit.families.common.evidence import Evidence
from glmkit.families.common.multiquery import LATER_WORDS
from glmkit.families.family import all_families
from glmkit.families.judge import Judgement, judge, kin_of, with_identity

KIN = kin_of(all_families()["chatglm2"].layouts[0])
COMMANDS = 'special_tokens = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]'
ROLES = 'role_special_tokens = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]'
DIVIDED = "seq_idx = torch.arange(seq_len, dtype=torch.float, device=device) / self.rope_ratio"
MULTIPLIED = "base = base * self.rope_ratio"


def judged(config: dict[str, Any], has_ranks: bool | None = None, **files: Any) -> Judgement:
    """files: by name without its ending; a text is code, anything else JSON."""
    texts = {
        f"{name}.{'py' if isinstance(content, str) else 'json'}": content
        if isinstance(content, str)
        else json.dumps(content)
        for name, content in files.items()
    }
    return judge(KIN, Evidence(config, texts, has_ranks))


SURE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("chatglm2", {"_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 50}, {}),
    ("chatglm2", {"_name_or_path": "THUDM/codegeex2-6b", "seq_length": 8192}, {}),
    ("chatglm2", {"_name_or_path": "/data/models/chatglm2-6b-32k", "rope_ratio": 50}, {}),
    ("chatglm2", {"_name_or_path": "/x/merged", "seq_length": 8192}, {"tokenization_chatglm": COMMANDS}),
    ("chatglm2", {"_name_or_path": "/x/merged", "rope_ratio": 50}, {"modeling_chatglm": DIVIDED}),
    ("chatglm2", {"seq_length": 8192}, {"tokenizer_config": {"chat_template": "[Round {{ i }}]\n\n问：{{ q }}"}}),
    ("chatglm3", {"_name_or_path": "THUDM/chatglm3-6b-base"}, {}),
    ("chatglm3", {"_name_or_path": "/mnt/x/merged", "seq_length": 131072, "rope_ratio": 500}, {}),
    ("chatglm3", {"_name_or_path": "/x/chatglm2-ft", "rope_ratio": 50}, {"tokenization_chatglm": COMMANDS + ROLES}),
    ("chatglm3", {"seq_length": 32768}, {"tokenizer_config": {"chat_template": "<|user|>\n{{ m }}<|assistant|>"}}),
    ("chatglm3", {}, {"tokenizer_config": {"chat_template": "<|{{ m['role'] }}|>\n{{ m['content'] }}"}}),
    ("chatglm3", {"eos_token_id": [2, 64795, 64797]}, {}),
    ("chatglm3", {}, {"generation_config": {"eos_token_id": [2, 64795, 64797]}}),
    ("glm-4", {"layernorm_epsilon": 1.5625e-07}, {}),
    ("glm-4", {"padded_vocab_size": 151552, "seq_length": 131072, "rope_ratio": 500}, {}),
    ("glm-4", {"_name_or_path": "THUDM/codegeex4-all-9b"}, {}),
    ("glm-4", {"eos_token_id": [151329, 151336, 151338]}, {}),
    ("glm-4", {}, {"has_ranks": True}),
]


@pytest.mark.parametrize(("family", "config", "files"), SURE)
def test_signs_that_are_sure(family: str, config: dict[str, Any], files: dict[str, Any]) -> None:
    found = judged(config, **files)
    assert (found.family.name, found.doubt) == (family, None)
    assert found.evidence


GUESSES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("chatglm2", {}, {}),
    ("chatglm2", {"_name_or_path": "/x/merged", "seq_length": 32768, "classifier_dropout": None}, {}),
    ("chatglm2", {"_name_or_path": "/data/chatglm2-6b-32k-lora", "rope_ratio": 50}, {}),
    ("chatglm3", {"_name_or_path": "/mnt/x/merged", "seq_length": 32768, "rope_ratio": 50}, {}),
    ("chatglm3", {"_name_or_path": "/data/chatglm2-tuned", "seq_length": 32768, "rope_ratio": 50}, {}),
    ("chatglm3", {"_name_or_path": "/data/chatglm2-runs/merged", "seq_length": 8192}, {}),
    ("chatglm3", {"_name_or_path": "saves/ChatGLM3-6B-Chat/lora/merged"}, {}),
    ("chatglm3", {}, {"added_tokens": {"<CAR>": 64798}}),
    ("glm-4", {"eos_token_id": [1, 2]}, {}),
]


@pytest.mark.parametrize(("family", "config", "files"), GUESSES)
def test_guesses_are_said(family: str, config: dict[str, Any], files: dict[str, Any]) -> None:
    found = judged(config, **files)
    assert found.family.name == family
    assert found.guess is not None
    assert found.guess.startswith(f"taken for {found.family.title} (")
    assert f"--family {family} " in found.guess
    assert "\n" not in found.guess


def test_a_guess_with_a_rope_ratio_is_never_the_family_that_divides_positions() -> None:
    for more in ({}, {"seq_length": 32768}, {"seq_length": 8192}, {"_name_or_path": "chatglm2-mine"}):
        assert judged({"rope_ratio": 50, **more}).family.name == "chatglm3"
    assert judged({"rope_ratio": 50}, modeling_chatglm=MULTIPLIED).family.name == "chatglm3"


def test_signs_that_contradict_each_other_are_both_named() -> None:
    found = judged({"_name_or_path": "THUDM/chatglm2-6b"}, tokenization_chatglm=ROLES)
    assert found.doubt is not None
    assert "the config is that of ChatGLM2-6B (config.json: _name_or_path 'THUDM/chatglm2-6b')" in found.doubt
    assert "the tokenizer files are those of ChatGLM3-6B (tokenization_chatglm.py has role tokens)" in found.doubt
    found = judged({"_name_or_path": "THUDM/chatglm2-6b", "eos_token_id": [2, 64795]})
    assert found.doubt is not None
    assert "answers end at a role token is that of ChatGLM3-6B" in found.doubt


@pytest.mark.parametrize("word", LATER_WORDS)
def test_files_beside_glm_4_are_not_those_of_chatglm3(word: str) -> None:
    """The published directory: role tokens in code and settings, as ChatGLM3 has them."""
    config = {"_name_or_path": "THUDM/glm-4-9b-chat", "layernorm_epsilon": 1.5625e-07, "rope_ratio": 500}
    code = f'import {word}\nself.convert_tokens_to_ids("[gMASK]"), f"<|{{role}}|>"'
    settings = {"additional_special_tokens": [word, "[gMASK]", "<|user|>", "<|observation|>"]}
    for files in ({"tokenization_chatglm": code}, {"tokenizer_config": settings}):
        found = judged(config, True, **files)
        assert (found.family.name, found.doubt) == ("glm-4", None)


def test_unreadable_files_say_nothing() -> None:
    texts = {
        "tokenizer_config.json": "{",
        "added_tokens.json": "[1]",
        "generation_config.json": '{"eos_token_id": "x"}',
    }
    assert judge(KIN, Evidence({"_name_or_path": 7, "eos_token_id": None}, texts)).signs == ()


@pytest.mark.parametrize("name", [None, "/mnt/merged", "THUDM/chatglm2-6b", "THUDM/chatglm3-6b-32k"])
@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "glm-4"])
def test_a_written_config_says_its_family(family: str, name: str | None) -> None:
    """Whatever the source calls itself, which is kept: read again, it is taken for what it was, for sure."""
    kind = all_families()[family]
    for layout in kind.layouts[:1]:
        values = with_identity({"model_type": "chatglm", "rope_ratio": 50}, kind, layout, name)
        assert values.get("_name_or_path") == name
        again = judge(KIN, Evidence(values))
        assert again.family is kind
        assert with_identity(values, kind, layout, name) == values
