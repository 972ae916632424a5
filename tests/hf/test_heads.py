"""Heads beside the language model: recorded numbers, formulas by hand, new and stored heads, padding, losses, PEFT."""

import inspect
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoModelForMultipleChoice, AutoModelForSequenceClassification

import glmkit.hf
from glmkit.config import SpecialIds
from glmkit.errors import CheckpointError, GLMKitError, MismatchWarning, RequestError
from glmkit.loading import load_parts
from glmkit.objective.choice_inputs import build_choice_inputs
from support.shared import shared_dir

pytestmark = [
    pytest.mark.filterwarnings("ignore::glmkit.errors.GuessWarning"),
    pytest.mark.filterwarnings("ignore:.*the head is new"),
]
LATER = ("chatglm2-6b", "chatglm3-6b", "glm-4-9b-remote")
IDS = torch.randint(5, 200, (2, 7), generator=torch.Generator().manual_seed(1))


def recorded() -> tuple[dict[str, Any], Any]:
    folder = shared_dir("fixtures", "glm-hf")
    return json.loads((folder / "inputs.json").read_text()), np.load(folder / "expected.npz")


def classifier(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(shared_dir("fixtures", name), **options)


def with_head(folder: Path, **changed: Tensor | None) -> Path:
    """The recorded classifier as one directory. changed: tensors by name, with _ for the dot, None = left out."""
    source = shared_dir("fixtures", "glm-hf")
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 3}))
    files = ("pytorch_model.bin", "sequence_classification_head.bin")
    tensors = {name: value for file in files for name, value in torch.load(source / file).items()}
    for name, value in changed.items():
        stem, _, parameter = name.rpartition("_")
        tensors[f"{stem}.{parameter}"] = value
    torch.save({name: value for name, value in tensors.items() if value is not None}, folder / "pytorch_model.bin")
    return folder


# --- recorded ---------------------------------------------------------------------------------------------------------


def test_recorded_classes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MismatchWarning)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            with_head(tmp_path / "model"), output_loading_info=True
        )
    assert type(model) is glmkit.hf.GLMForSequenceClassification
    assert not any(report.values())
    inputs, expected = recorded()
    case = {name: torch.tensor(inputs["batch_sep"][name]) for name in ("input_ids", "position_ids", "sep")}
    logits = model(case["input_ids"], case["position_ids"], case["sep"]).logits
    np.testing.assert_allclose(logits.detach().numpy(), expected["seqcls.logits"], rtol=0, atol=1e-4)


def test_recorded_choices() -> None:
    model = AutoModelForMultipleChoice.from_pretrained(shared_dir("fixtures", "glm-hf"))
    assert type(model) is glmkit.hf.GLMForMultipleChoice
    inputs, expected = recorded()
    case = inputs["multiple_choice"]
    given = {name: torch.tensor(case[name]) for name in ("input_ids", "position_ids", "labels")}
    options = {name: case[name] for name in ("choice_ids", "choice_indices")}
    output = model(**given, **options, attention_mask=torch.tensor(case["mask4d"]))
    np.testing.assert_allclose(output.logits.detach(), expected["multiple_choice.scores"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(output.loss.item(), expected["multiple_choice.loss"], rtol=0, atol=1e-4)


# --- choices ----------------------------------------------------------------------------------------------------------

_TEXT = [[245, 8, 9, 246, 10, 251], [245, 7, 246, 251]]
_CHOICES = [[[20, 21, 22], [23]], [[24, 25], [26, 27, 28, 29]]]
_SPECIAL = SpecialIds(pad=244, eos=244, cls=245, mask=246, smask=None, gmask=247, sop=249, eop=250)


def choice_batch() -> dict[str, Any]:
    rows = [[244] * (6 - len(row)) + row for row in _TEXT]
    made = build_choice_inputs(rows, [[int(token != 244) for token in row] for row in rows], _CHOICES, _SPECIAL)
    tensors = {name: torch.from_numpy(getattr(made, name)) for name in ("input_ids", "position_ids", "attention_mask")}
    return {**tensors, "choice_ids": made.choice_ids, "choice_indices": made.choice_indices}


@pytest.fixture(scope="module")
def chooser() -> Any:
    return AutoModelForMultipleChoice.from_pretrained(shared_dir("fixtures", "glm-hf"))


def test_a_score_is_the_core_s_log_probability_of_each_choice_alone(chooser: Any) -> None:
    core = load_parts(shared_dir("fixtures", "glm-hf"), dtype="float32").model
    scores = chooser(**choice_batch()).logits
    for row, (text, choices) in enumerate(zip(_TEXT, _CHOICES, strict=True)):
        # Left padding moves the recorded positions of a row; learned positions count from where the text stands.
        shift, mask = 6 - len(text), text.index(246)
        for number, choice in enumerate(choices):
            length = len(text)
            ids = torch.tensor([[*text, 249, *choice[:-1]]])
            first = [*range(shift, 6), *[mask + shift] * len(choice)]
            positions = torch.tensor([[first, [0] * length + list(range(1, len(choice) + 1))]])
            log_probs = core(ids, position_ids=positions, prefix_length=torch.tensor([length])).log_softmax(-1)
            by_hand = log_probs[0, torch.arange(length, ids.shape[1]), torch.tensor(choice)].sum()
            assert torch.allclose(scores[row, number], by_hand, rtol=0, atol=1e-4)


def test_the_loss_of_choices_has_finite_gradients_in_the_model_s_dtype() -> None:
    model = AutoModelForMultipleChoice.from_pretrained(shared_dir("fixtures", "glm-hf"), dtype=torch.bfloat16)
    output = model.train()(**choice_batch(), labels=torch.tensor([1, 0]))
    assert (output.loss.dtype, output.logits.dtype) == (torch.bfloat16, torch.float32)
    output.loss.backward()
    assert all(bool(value.grad.isfinite().all()) for value in model.parameters())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"choice_ids": [[[20], [23]], [[24]]], "choice_indices": [[[6], [7]], [[6]]]}, "choice_ids"),
        ({"choice_ids": None}, "choice_ids"),
        ({"choice_indices": [[[6], [7]]]}, "choice_indices"),
        ({"choice_indices": [[[6, 7], [9]], [[6, 7], [8, 9, 10, 11]]]}, "choice_indices"),
        ({"choice_indices": [[[6, 7, 8], [99]], [[6, 7], [8, 9, 10, 11]]]}, "choice_indices"),
        ({"choice_ids": [[[20, 21, 256], [23]], [[24, 25], [26, 27, 28, 29]]]}, "choice_ids"),
        ({"choice_ids": [[], []], "choice_indices": [[], []]}, "choice_ids"),
        ({"labels": torch.tensor([0, 2])}, "labels"),
        ({"labels": torch.tensor([0])}, "labels"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels"),
        ({"output_attentions": True}, "output_attentions"),
    ],
)  # fmt: skip
def test_choices_that_do_not_fit(chooser: Any, change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chooser(**{**choice_batch(), **change})
    assert caught.value.param == param


# --- heads, new and stored --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LATER, "glm-hf"])
def test_a_new_head_is_said_once_drawn_from_torch_and_kept(name: str, tmp_path: Path) -> None:
    with pytest.warns(MismatchWarning, match="the head is new") as caught:
        model = classifier(name, num_labels=5)
    assert len([each for each in caught if each.category is MismatchWarning]) == 1
    again, report = classifier(name, num_labels=5, output_loading_info=True)
    own = {key for key in model.state_dict() if not key.startswith(("transformer.", "glm."))}
    stems = ("dense", "out_proj") if name == "glm-hf" else ("classifier_head",)
    assert own == report["missing_keys"] == {f"{stem}.{part}" for stem in stems for part in ("weight", "bias")}
    assert all(torch.equal(model.state_dict()[key], again.state_dict()[key]) for key in own)
    assert all(bool(model.state_dict()[key].any()) for key in own if key.endswith("weight"))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MismatchWarning)
        stored = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert stored.num_labels == 5
    assert model.state_dict().keys() == stored.state_dict().keys()
    assert all(torch.equal(value, stored.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"out_proj_bias": None}, "out_proj.bias is missing"),
        ({"out_proj_weight": torch.ones(4, 64)}, r"out_proj.weight has shape \(4, 64\)"),
        ({"dense_weight": torch.ones(64, 64, dtype=torch.int32)}, "dense.weight is int32"),
        ({"out_proj_bias": torch.tensor([1.0, float("nan"), 0.0])}, "NaN or infinite values in out_proj.bias"),
        ({"score_weight": torch.ones(3, 64)}, "score.weight is not part of this model"),
    ],
)
def test_a_stored_head_is_read_strictly(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        AutoModelForSequenceClassification.from_pretrained(with_head(tmp_path / "model", **changed))


def test_a_head_is_not_part_of_a_language_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"dense\.bias is not part of this model"):
        AutoModel.from_pretrained(with_head(tmp_path / "model"))


def test_a_wrapped_head_is_found(tmp_path: Path) -> None:
    plain = with_head(tmp_path / "model")
    wrapped = shutil.copytree(plain, tmp_path / "wrapped")
    tensors = {f"module.{name}": value for name, value in torch.load(plain / "pytorch_model.bin").items()}
    torch.save(tensors, wrapped / "pytorch_model.bin")
    first, second = (AutoModelForSequenceClassification.from_pretrained(own).state_dict() for own in (plain, wrapped))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_first_release_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="ChatGLM-6B was published without"):
        classifier("chatglm-6b")
    with pytest.raises(GLMKitError):
        glmkit.hf.GLMForSequenceClassification.from_pretrained(shared_dir("fixtures", "chatglm2-6b"))


# --- the place of the head --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LATER)
def test_a_linear_head_at_the_last_token(name: str) -> None:
    model, core = classifier(name, num_labels=3), load_parts(shared_dir("fixtures", name), dtype="float32").model
    output = model(IDS, output_hidden_states=True)
    last_BH = core.hidden(IDS)[:, -1]
    by_hand = last_BH @ model.classifier_head.weight.T + model.classifier_head.bias
    assert torch.allclose(output.logits, by_hand, rtol=0, atol=1e-5)
    states = output.hidden_states[-1]
    assert torch.equal(states[:, -1] if name == "glm-4-9b-remote" else states[-1], last_BH)
    assert output[0] is output.logits
    assert model(IDS, return_dict=False)[0].shape == (2, 3)
    assert model(IDS, use_cache=True)[1].get_seq_length() == 7


def test_a_head_of_two_layers_at_the_first_token() -> None:
    model, core = (
        classifier("glm-hf", num_labels=3),
        load_parts(shared_dir("fixtures", "glm-hf"), dtype="float32").model,
    )
    first_BH = core.hidden(IDS, prefix_length=torch.tensor([7, 7]))[:, 0]
    inner_BH = torch.tanh(first_BH @ model.dense.weight.T + model.dense.bias)
    by_hand = inner_BH @ model.out_proj.weight.T + model.out_proj.bias
    assert torch.allclose(model(IDS, attention_mask=torch.tensor([7, 7])).logits, by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*LATER, "glm-hf"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["row", "square"])
def test_padding_on_either_side_changes_nothing(name: str, side: str, form: str) -> None:
    model = classifier(name, num_labels=3)
    short = IDS[1:, :4]
    alone = torch.cat([model(IDS[:1]).logits, model(short).logits])
    padding = (3, 0) if side == "left" else (0, 3)
    ids = torch.cat([IDS[:1], functional.pad(short, padding, value=1)])
    real = torch.cat([torch.ones(1, 7), functional.pad(torch.ones(1, 4), padding)])
    options: dict[str, Any] = {"attention_mask": real.long()}
    if form == "square":
        seen = (real[:, None, :] * real[:, :, None]).tril()
        positions = (real.cumsum(1) - 1).clamp(min=0).long()
        options = {"attention_mask": seen[:, None], "position_ids": positions}
        if name == "glm-hf":
            options["position_ids"] = torch.stack([positions, torch.zeros_like(positions)], 1)
    together = model(ids, **options).logits
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)


def test_a_row_of_padding_has_no_class() -> None:
    with pytest.raises(RequestError, match="row 1 is padding"):
        classifier("chatglm2-6b")(IDS, attention_mask=torch.tensor([[1] * 7, [0] * 7]))


def test_texts_with_choices_have_a_score_each() -> None:
    model = classifier("glm-hf", num_labels=1)
    ids = IDS.view(1, 2, 7).expand(3, 2, 7)
    output = model(ids, attention_mask=torch.full((3, 2), 7), labels=torch.tensor([0, 1, 1]))
    flat = model(IDS, attention_mask=torch.tensor([7, 7])).logits[:, 0]
    assert torch.allclose(output.logits, flat.expand(3, 2), rtol=0, atol=1e-5)
    assert torch.equal(output.loss, functional.cross_entropy(output.logits, torch.tensor([0, 1, 1])))
    for name, words in (("glm-hf", "num_labels=1"), ("chatglm2-6b", r"ids \(B,T\)")):
        with pytest.raises(RequestError, match=words):
            classifier(name, num_labels=2)(ids)


@pytest.mark.parametrize(
    "name", ["ChatGLMForSequenceClassification", "GLMForSequenceClassification", "GLMForMultipleChoice"]
)
def test_trainers_find_the_columns_by_the_signature(name: str) -> None:
    names = inspect.signature(getattr(glmkit.hf, name).forward).parameters
    assert {"input_ids", "position_ids", "attention_mask", "labels"} <= set(names)


# --- losses -----------------------------------------------------------------------------------------------------------

_WHOLE, _MANY = torch.tensor([2, 0]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("labels", "classes", "problem", "loss"),
    [
        (_WHOLE, 3, "single_label_classification", functional.cross_entropy),
        (_MANY, 3, "multi_label_classification", functional.binary_cross_entropy_with_logits),
        (torch.tensor([0.5, 2.0]), 1, "regression", lambda a, b: functional.mse_loss(a[:, 0], b)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_labels_say_the_kind_of_problem(
    labels: Tensor, classes: int, problem: str, loss: Any, dtype: torch.dtype
) -> None:
    model = classifier("chatglm2-6b", num_labels=classes, dtype=dtype).train()
    output = model(IDS, labels=labels)
    assert model.config.problem_type == problem
    assert torch.equal(output.loss, loss(output.logits.float(), labels).to(dtype))
    output.loss.backward()
    used = [value for name, value in model.named_parameters() if "output_layer" not in name]
    assert all(bool(value.grad.isfinite().all()) for value in used)


def test_a_stated_problem_stands() -> None:
    model = classifier("chatglm3-6b", num_labels=3, problem_type="regression")
    output = model(IDS, labels=_MANY)
    assert torch.equal(output.loss, functional.mse_loss(output.logits, _MANY))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (torch.tensor([3, 0]), None),
        (torch.tensor([-1, 0]), None),
        (torch.tensor([0, 1, 2]), None),
        (torch.tensor([0.5, 1.5]), None),
        (_MANY, "single_label_classification"),
        (_WHOLE, "regression"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, problem: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        classifier("chatglm2-6b", num_labels=3, problem_type=problem)(IDS, labels=labels)
    assert caught.value.param == "labels"


def test_dropout_is_the_config_s() -> None:
    assert classifier("chatglm2-6b").dropout.p == 0.0
    assert classifier("glm-hf").dropout.p == 0.1
    for name in ("chatglm2-6b", "glm-hf"):
        model = classifier(name, classifier_dropout=0.5)
        assert model.dropout.p == 0.5
        assert not torch.equal(model.train()(IDS).logits, model.eval()(IDS).logits)


# --- integers and adapters --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:load_in_8bit")
def test_a_head_on_integers(tmp_path: Path) -> None:
    model = classifier("chatglm2-6b", num_labels=3, load_in_8bit=True)
    assert model.classifier_head.weight.dtype == torch.float32
    later = classifier("chatglm2-6b", num_labels=3).quantize(8)
    assert torch.equal(model(IDS).logits, later(IDS).logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_trains_and_keeps_the_head(dtype: torch.dtype, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": ["query_key_value"], "init_lora_weights": False}
    config = peft.LoraConfig(task_type="SEQ_CLS", modules_to_save=["classifier_head"], **options)
    model = peft.get_peft_model(classifier("chatglm2-6b", num_labels=3, dtype=dtype), config).train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    losses = []
    for _ in range(3):
        loss = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=_WHOLE).loss
        loss.backward()
        assert all(bool(value.grad.isfinite().all()) for value in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    torch.manual_seed(5)
    base = AutoModelForSequenceClassification.from_pretrained(
        shared_dir("fixtures", "chatglm2-6b"), num_labels=3, dtype=dtype
    )
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_new_head_that_peft_froze_is_said() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query_key_value"])
    model = peft.get_peft_model(classifier("chatglm2-6b", num_labels=3), config).train()
    with pytest.warns(MismatchWarning, match=r"modules_to_save=\['classifier_head'\]"):
        model(input_ids=IDS, labels=_WHOLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MismatchWarning)
        model(input_ids=IDS, labels=_WHOLE)
