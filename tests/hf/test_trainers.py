"""Trainers of transformers on the adapter: collators, losses, recomputation, resumed runs, other processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn import functional
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from glmkit.errors import RequestError
from glmkit.loading import load_parts
from support.hf_models import BY_FAMILY, open_model, prompt_ids
from support.shared import shared_dir

pytestmark = pytest.mark.filterwarnings("ignore::glmkit.errors.GuessWarning")


def rows(model: Any, count: int = 8) -> list[dict[str, list[int]]]:
    """Rows with labels behind the start of the answer alone."""
    ids = prompt_ids(model).tolist()
    return [{"input_ids": ids[n % 2], "labels": [-100] * 10 + ids[n % 2][10:]} for n in range(count)]


def arguments(folder: Path, kind: Any = TrainingArguments, **options: Any) -> Any:
    settings = {"per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    return kind(str(folder), **{**settings, "max_steps": 4, "save_strategy": "no", "learning_rate": 1e-3, **options})


def gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("name", BY_FAMILY)
def test_a_resumed_run_is_the_same_run(name: str, tmp_path: Path) -> None:
    model = open_model(name)
    options = arguments(tmp_path, save_strategy="steps", save_steps=2)
    Trainer(model, options, train_dataset=rows(model)).train()
    other = open_model(name)
    Trainer(other, options, train_dataset=rows(other)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    final, ids = open_model(tmp_path / "checkpoint-4"), prompt_ids(model)
    core = load_parts(tmp_path / "checkpoint-4", dtype="float32").model
    with torch.no_grad():
        wanted = model.eval()(ids).logits
        assert torch.equal(other.eval()(ids).logits, wanted)
        assert torch.equal(final(ids).logits, wanted)
        assert torch.equal(core(ids), wanted)
        assert not torch.allclose(open_model(name)(ids).logits, wanted, atol=1e-2)


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "glm-4-9b-remote"])
def test_predicting_with_generate(name: str, tmp_path: Path) -> None:
    """DataCollatorForSeq2Seq pads rows and labels; predictions are what generate gives, labels or not."""
    model = open_model(name)
    letters = Tokenizer(models.WordLevel({"a": 0, "[PAD]": 3}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="[PAD]", padding_side="left")
    data = rows(model, 4)
    data[1] = {key: value[2:] for key, value in data[1].items()}
    collate = DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100, padding=True)
    options = arguments(
        tmp_path, Seq2SeqTrainingArguments, per_device_eval_batch_size=2, predict_with_generate=True, max_steps=1
    )
    trainer = Seq2SeqTrainer(model, options, train_dataset=data, eval_dataset=data, data_collator=collate)
    trainer.train()
    found = trainer.predict(data, max_length=17, do_sample=False)
    batch = collate(data[:2])
    with torch.no_grad():
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        wanted = model.generate(**inputs, max_length=17, do_sample=False)
        loss = model(**batch).loss
    assert found.predictions[:2, : wanted.shape[1]].tolist() == wanted.tolist()
    assert abs(trainer.evaluate(data[:2])["eval_loss"] - float(loss)) < 1e-5
    with pytest.raises(ValueError, match="typing_error"):
        model.generate(prompt_ids(model), typing_error=1)


@pytest.mark.parametrize("name", BY_FAMILY)
def test_recomputation_changes_no_gradient(name: str) -> None:
    model = open_model(name)
    ids = prompt_ids(model)
    wanted = gradients(model, ids)
    model.gradient_checkpointing_enable()
    found = gradients(model, ids)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    lora = get_peft_model(open_model(name), LoraConfig(task_type="CAUSAL_LM", target_modules=["query_key_value"]))
    for each in (value for key, value in lora.named_parameters() if "lora_B" in key):
        torch.nn.init.normal_(each)
    wanted = gradients(lora, ids)
    lora.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    lora.enable_input_require_grads()  # a hook on the word table, without which this kind learns nothing
    found = gradients(lora, ids)
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], atol=1e-6) for key in wanted)


@pytest.mark.parametrize("name", BY_FAMILY)
def test_losses_by_every_spelling(name: str, tmp_path: Path) -> None:
    """GLM's labels are of the next token already; the others' stand where their ids stand."""
    model = open_model(name)
    ids = prompt_ids(model)
    labels = ids.clone()
    labels[:, :10] = -100
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
        shift = 0 if name == "glm-hf" else 1
        columns = output.logits[:, : ids.shape[1] - shift].flatten(0, 1)
        assert torch.allclose(output.loss, functional.cross_entropy(columns, labels[:, shift:].flatten()))
        assert torch.equal(model(ids, labels=labels, return_dict=False)[0], output.loss)
        assert torch.equal(model(input_ids=ids, labels=labels)[0], output.loss)
        half = model.bfloat16()(ids, labels=labels)
    assert half.loss.dtype == half.logits.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="num_items_in_batch"):
        model(ids, labels=labels, num_items_in_batch=3)
    assert model.main_input_name == "input_ids"
    assert not hasattr(model, "encoder")

    class Mine(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

        def prediction_step(self, model: Any, inputs: Any, only_loss: bool, ignore_keys: Any = None) -> Any:
            with torch.no_grad():
                loss, logits = model(**inputs)[:2]
            return loss, logits[:, -1].argmax(-1), inputs["labels"]

    model = open_model(name)
    trainer = Mine(model, arguments(tmp_path, max_steps=1), train_dataset=rows(model))
    assert trainer.evaluate(rows(model, 2))["eval_loss"] > 0
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("variant", ["gmask", "mask"])
def test_collators_of_the_first_scripts(variant: str) -> None:
    """Masks True = hidden and positions by hand are used as given, also where people's variants differ."""
    model = open_model("chatglm-6b")
    special = model.core.config.special
    ids = prompt_ids(model)
    if variant == "mask":
        ids[:, 8] = special.mask
    length, start = ids.shape[1], 9
    hidden = torch.ones(1, length, length).tril()
    hidden[..., :start] = 1
    other = hidden.clone()
    other[..., : start - 1, start - 1] = 0  # a variant that hides the mask token from part A
    hidden, other = (each < 0.5 for each in (hidden, other))
    behind = [8] * (length - start) if variant == "mask" else [start - 1] * (length - start)
    positions = torch.tensor([[*range(start), *behind], [*[0] * start, *range(1, length - start + 1)]])
    core = load_parts(shared_dir("fixtures", "chatglm-6b"), dtype="float32").model
    given = {"position_ids": positions.expand(2, -1, -1)}
    with torch.no_grad():
        for mask in (hidden, other):
            found = model(ids, attention_mask=mask.expand(2, 1, -1, -1), **given).logits
            assert torch.allclose(found, core(ids, attention_mask=~mask.expand(2, 1, -1, -1), **given), atol=1e-6)
        assert not torch.allclose(found, model(ids).logits, atol=1e-3)
    no_blank = torch.full_like(ids, 7)
    with pytest.raises(RequestError, match="lacks a mask"):
        model(no_blank, labels=no_blank)


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b"])
def test_right_padding_needs_no_mask(name: str) -> None:
    model = open_model(name)
    ids = prompt_ids(model)
    padded = functional.pad(ids, (0, 3), value=model.config.pad_token_id)
    with torch.no_grad():
        assert torch.allclose(model(padded).logits[:, :13], model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", BY_FAMILY)
def test_rows_of_several_texts_are_refused(name: str) -> None:
    model = open_model(name).train()
    ids = prompt_ids(model)[:1]
    packed = torch.cat([ids, ids], 1)
    positions = torch.arange(ids.shape[1]).repeat(2)[None]
    with pytest.raises(RequestError, match="begin at 0 again"):
        model(packed, position_ids=positions, labels=packed)
    with pytest.raises(RequestError, match="several texts|word table"):
        model.base_model(packed, position_ids=positions, cu_seq_lens_q=torch.tensor([0, 13, 26]))
    padded = torch.cat([positions[:, :13], torch.zeros(1, 3, dtype=torch.long)], 1)
    assert model(functional.pad(ids, (0, 3)), position_ids=padded).logits.shape[1] == 16


@pytest.mark.exhaustive
def test_another_process_gets_the_same_model(tmp_path: Path) -> None:
    model = open_model("chatglm-6b")
    ids = prompt_ids(model)
    with torch.no_grad():
        wanted = model(ids).logits.sum().item()
    torch.multiprocessing.spawn(_child, (model, ids, str(tmp_path / "found.json")), nprocs=1)  # type: ignore[no-untyped-call]
    assert json.loads((tmp_path / "found.json").read_text()) == wanted


def _child(rank: int, model: Any, ids: Tensor, path: str) -> None:
    with torch.no_grad():
        Path(path).write_text(json.dumps(model(ids).logits.sum().item()))
