"""What scripts do around `chat`: arguments by place, recorded replies, options of `generate`, their own loops."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoTokenizer, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

import glmkit.hf  # noqa: F401
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.errors import RequestError
from hf.test_chat import CHATS, GREEDY, Broken, opened, prompts_of
from support.published_scripts import release
from support.shared import shared_dir


class Dictated(LogitsProcessor):  # type: ignore[misc]
    """Scores that leave one given id after the other."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = iter(ids)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = torch.full_like(scores, -torch.inf)
        scores[:, next(self.ids)] = 0
        return scores


def dictated(ids: list[int]) -> dict[str, Any]:
    return {"logits_processor": LogitsProcessorList([Dictated(ids)]), "do_sample": False}


def recorded(name: str) -> dict[str, Any]:
    folder = shared_dir("fixtures", "tokenizers", name.removesuffix("-chat"))
    values: dict[str, Any] = json.loads((folder / "cases.json").read_text())
    return values


def as_pairs(history: list[Any]) -> list[Any]:
    """JSON knows no tuples."""
    return [tuple(turn) if isinstance(turn, list) else turn for turn in history]


def streamed(name: str) -> Iterator[tuple[str, str, list[Any], dict[str, Any]]]:
    """(query, role, history, record) of the recorded conversations whose streams were recorded."""
    for case in recorded(name)["chat"]:
        record = case.get("chat", case)
        if "stream_responses" not in record or not isinstance(record["response"], str):
            continue
        if "query" in case:
            yield case["query"], case.get("role", "user"), as_pairs(case["history"]), record
        else:
            *history, last = case["conversation"]
            yield last["content"], last["role"], history, record


@pytest.mark.parametrize("name", CHATS)
def test_recorded_conversations(name: str) -> None:
    """Prompts, every step of the streams, answers and histories as the published code gave them."""
    tokenizer, model, _ = opened(name)
    count = 0
    for query, role, history, record in streamed(name):
        count += 1
        steps: list[Any] = []
        given = copy.deepcopy(history)
        stream = model.stream_chat(tokenizer, query, given, role=role, **dictated(record["reply_ids"]))
        seen = prompts_of(model, (steps.append(step) for step in stream))
        assert seen[0] == record["input_ids"][0]
        assert [shown for shown, _ in steps] == record["stream_responses"]
        assert steps[-1] == (record["response"], as_pairs(record["history_out"]))
        given = copy.deepcopy(history)
        assert model.chat(tokenizer, query, given, role=role, **dictated(record["reply_ids"])) == steps[-1]
        settings = model._settings(model.chat_template, tokenizer.core, None, 1, True, None, None, {})
        assert settings.items() >= record["gen_kwargs"].items()
    assert count >= 3


@pytest.mark.parametrize("name", CHATS)
def test_broken_characters(name: str) -> None:
    """ChatGLM-6B shows them while they are incomplete, the others wait."""
    tokenizer, model, _ = opened(name)
    ids = [*tokenizer.core.encode("𠮷"), tokenizer.eos_token_id]
    shown = [text for text, _ in model.stream_chat(tokenizer, "hi", [], **dictated(ids))]
    if name == "chatglm-6b":
        assert shown == ["", *("\ufffd" * count for count in (1, 2, 3)), "𠮷", "𠮷"]
    else:
        assert "\ufffd" not in "".join(shown)
        assert shown[-1] == "𠮷"


def test_recorded_inputs() -> None:
    """`build_inputs` and `build_stream_inputs` of ChatGLM2-6B, masks and positions too."""
    tokenizer, model, _ = opened("chatglm2-6b")
    case = recorded("chatglm2-6b")["chat"][0]
    built = model.build_inputs(tokenizer, case["query"], history=case["history"])
    assert {key: value.tolist() for key, value in built.items()} == {key: case[key] for key in built}
    for case in recorded("chatglm2-6b")["chat_incremental"]:
        built = model.build_stream_inputs(tokenizer, case["query"], history=case["history"])
        built.position_ids += case["past_length"]
        assert built["input_ids"].tolist() == case["input_ids"]
        assert built["position_ids"].tolist() == case["position_ids"]


@pytest.mark.parametrize(
    ("name", "between"), [("chatglm-6b", ()), ("chatglm2-6b", (None,)), ("chatglm3-6b", ("user", None))]
)
def test_arguments_by_place(name: str, between: tuple[Any, ...]) -> None:
    """As each generation's own signature has them: ChatGLM2 knows no role, ChatGLM-6B no past keys either."""
    tokenizer, model, _ = opened(name)
    named = model.chat(tokenizer, "hi", history=[], max_length=40, do_sample=False)
    role = between[:-1]
    assert model.chat(tokenizer, "hi", [], *role, 40, 1, False) == named
    *_, last = model.stream_chat(tokenizer, "hi", [], *between, 40, False)
    assert last == named
    with pytest.raises(RequestError, match="given twice"):
        model.chat(tokenizer, "hi", [], *role, 40, max_length=40)
    with pytest.raises(RequestError, match="stand behind the history"):
        model.chat(tokenizer, "hi", [], *range(9))


def test_a_call_that_fails_leaves_the_history() -> None:
    tokenizer, model, _ = opened("chatglm3-6b")
    mine: list[Any] = []
    with pytest.raises(ValueError, match="strictly positive"):  # transformers' own words
        model.chat(tokenizer, "hi", history=mine, temperature=0.0)
    with pytest.raises(RequestError, match="no role"):
        model.chat(tokenizer, "hi", history=mine, role="teacher", **GREEDY)
    assert mine == []
    with pytest.raises(RequestError, match="3 beams"):
        list(model.stream_chat(tokenizer, "hi", num_beams=3, **GREEDY))


def test_limits_count_as_published() -> None:
    """The whole prompt, and behind a cache what the call itself reads and writes."""
    tokenizer, model, _ = opened("chatglm2-6b")
    options: dict[str, Any] = {"do_sample": False, "return_past_key_values": True}
    prompt = len(model.build_inputs(tokenizer, "hi")["input_ids"][0])
    *steps, (_, history, past) = model.stream_chat(tokenizer, "hi", max_length=prompt + 9, **options)
    assert len(steps) + 1 <= 9
    turn = len(model.build_stream_inputs(tokenizer, "more", history)["input_ids"][0])
    length = len(past[0][0])
    seen = prompts_of(
        model, model.stream_chat(tokenizer, "more", history, past_key_values=past, max_length=turn + 4, **options)
    )
    assert [len(ids) for ids in seen] == [turn, 1, 1, 1]
    assert len(past[0][0]) == length + turn + 3


def test_options_of_generate() -> None:
    """Forbidden tokens are no broken scores; a small temperature or top_p is greedy; nothing is warned of."""
    tokenizer, model, _ = opened("chatglm2-6b")
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            whole = model.chat(tokenizer, "hi", **GREEDY)[0]
            for options in ({"temperature": 1e-6}, {"top_p": 1e-5}, {"do_sample": False, "temperature": 0.5}):
                assert model.chat(tokenizer, "hi", max_new_tokens=12, **options)[0] == whole
            assert model.chat(tokenizer, "hi", bad_words_ids=[[100]], min_new_tokens=3, **GREEDY)[0] == whole
            assert model.chat(tokenizer, "hi", num_beams=2, **GREEDY)[0]
            for cache in ({"use_cache": False}, {"cache_implementation": "static"}):
                assert list(model.stream_chat(tokenizer, "hi", **cache, **GREEDY))[-1][0] == whole
    finally:
        logger.removeHandler(handler)
    assert messages == []


def test_nan_scores_in_the_first_vocabulary() -> None:
    tokenizer = AutoTokenizer.from_pretrained(release("chatglm-6b-v0"))
    model = AutoModel.from_pretrained(release("chatglm-6b-v0")).float().eval()
    seen = prompts_of(
        model,
        model.stream_chat(tokenizer, "x", logits_processor=LogitsProcessorList([Broken()]), **GREEDY),
    )
    assert seen[1:] == [[20005]] * 11


def own_loop(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """The steps that scripts copied out of the published classes and call on a model."""
    config = copy.deepcopy(model.generation_config)
    kept = config.update(**options)
    processors = model._get_logits_processor(
        generation_config=config, input_ids_seq_length=ids.shape[-1], encoder_input_ids=ids,
        prefix_allowed_tokens_fn=None, logits_processor=LogitsProcessorList(),
    )  # fmt: skip
    stopping = model._get_stopping_criteria(generation_config=config, stopping_criteria=StoppingCriteriaList())
    warper = model._get_logits_warper(config)
    while True:
        given = model.prepare_inputs_for_generation(ids, **kept)
        with torch.no_grad():
            outputs = model(**given, return_dict=True, output_attentions=False, output_hidden_states=False)
        assert model._extract_past_from_model_output(outputs, standardize_cache_format=False) is not None
        scores = warper(ids, processors(ids, outputs.logits[:, -1, :]))
        chosen = torch.multinomial(scores.softmax(-1), 1)[:, 0] if config.do_sample else scores.argmax(-1)
        ids = torch.cat([ids, chosen[:, None]], -1)
        kept = model._update_model_kwargs_for_generation(outputs, kept, is_encoder_decoder=False)
        if bool(stopping(ids, None).all()):
            return ids


@pytest.mark.parametrize("name", CHATS)
def test_copies_of_the_published_loop(name: str) -> None:
    tokenizer, model, _ = opened(name)
    ids = torch.tensor([tokenizer.encode("hello there")])
    found = []
    for call in (model.generate, lambda *given, **named: own_loop(model, *given, **named)):
        torch.manual_seed(3)
        options = {"max_length": ids.shape[1] + 7, "eos_token_id": tokenizer.eos_token_id}
        found.append(call(ids, do_sample=True, top_p=0.8, temperature=0.9, **options))
    assert torch.equal(*found)


def test_a_copy_of_the_published_stream() -> None:
    """Positions and the mask moved behind the cache by hand, and a loop that goes on from it."""
    tokenizer, model, _ = opened("chatglm2-6b")
    *_, (_, history, past) = model.stream_chat(tokenizer, "hi", return_past_key_values=True, **GREEDY)
    kept = copy.deepcopy(past)
    *_, (wanted, _) = model.stream_chat(tokenizer, "more", history, past_key_values=copy.deepcopy(past), **GREEDY)

    def moved(cache: Any) -> Any:
        inputs = model.build_stream_inputs(tokenizer, "more", history=history)
        length = cache[0][0].shape[0] - (model.transformer.pre_seq_len or 0)
        inputs.position_ids += length
        ones = inputs.attention_mask.new_ones(1, length)
        inputs["attention_mask"] = torch.cat((ones, inputs.attention_mask), dim=1)
        return inputs

    inputs = moved(past)
    start = inputs["input_ids"].shape[1]
    *_, rows = model.stream_generate(**inputs, past_key_values=past, **GREEDY)
    assert model.process_response(tokenizer.decode(rows[0, start:].tolist())) == wanted
    options = {"max_length": start + 12, "do_sample": False, "eos_token_id": 2, "past_key_values": kept}
    inputs = moved(kept)
    ids = inputs.pop("input_ids")
    assert torch.equal(own_loop(model, ids, **inputs, **options), rows)


def test_through_wrappers() -> None:
    """PEFT and torch.compile find `chat` on the model below, and it uses what they changed."""
    tokenizer, model, _ = opened("chatglm2-6b")
    whole = model.chat(tokenizer, "hi", **GREEDY)
    assert torch.compile(model, backend="eager").chat(tokenizer, "hi", **GREEDY) == whole
    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["query_key_value"], init_lora_weights=False)
    torch.manual_seed(0)
    tuned = get_peft_model(copy.deepcopy(model), settings).eval()
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.mul_(100)
    found = tuned.chat(tokenizer, "hi", **GREEDY)
    assert found != whole
    assert list(tuned.stream_chat(tokenizer, "hi", **GREEDY))[-1] == found
    with tuned.disable_adapter():
        assert tuned.chat(tokenizer, "hi", **GREEDY) == whole
    assert tuned.merge_and_unload().chat(tokenizer, "hi", **GREEDY) == found


def test_glmkits_own_format(tmp_path: Any) -> None:
    """A model of a family that was taught to chat does so from any layout."""
    convert(release("chatglm3-6b"), tmp_path / "own", to="glmkit")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "own")
    own = AutoModel.from_pretrained(tmp_path / "own").float().eval()
    before, model, _ = opened("chatglm3-6b")
    assert own.chat(tokenizer, "hi", [], **GREEDY) == model.chat(before, "hi", [], **GREEDY)


def test_flags_that_scripts_set() -> None:
    _, model, _ = opened("chatglm2-6b")
    model = copy.copy(model)
    for flag in ("is_parallelizable", "model_parallel"):
        setattr(model, flag, True)
        assert getattr(model, flag) is True
    assert model.device == torch.device("cpu")
