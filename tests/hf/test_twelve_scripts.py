"""Twelve scripts as people wrote them for the published code, with one line more: `import glmkit.hf`."""

import copy
import shutil
import threading
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    TextIteratorStreamer,
    Trainer,
    TrainingArguments,
)

import glmkit.hf  # noqa: F401
from glmkit.loading import load_parts
from support.published_scripts import release

KW: dict[str, Any] = {"trust_remote_code": True}
V1, V2, V3, G4, GL = "chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat", "glm-large-chinese"


def load(name: str | Path, cls: Any = AutoModel, **options: Any) -> tuple[Any, Any]:
    folder = release(name) if isinstance(name, str) else name
    tokenizer = AutoTokenizer.from_pretrained(folder, **KW)
    return tokenizer, cls.from_pretrained(folder, **KW, **options).float().eval()


@cache
def row() -> tuple[Any, Any, torch.Tensor]:
    """Tokenizer of ChatGLM-6B, and a row with an answer."""
    tokenizer = AutoTokenizer.from_pretrained(release(V1), **KW)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in ("问题是什么", "答案在这里")]
    return tokenizer, None, torch.tensor([tokenizer.build_inputs_with_special_tokens(*ids)])


def lora(model: Any, **options: Any) -> Any:
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["query_key_value", "dense"]}
    return get_peft_model(model, LoraConfig(**{**settings, **options}))


def step(model: Any, ids: torch.Tensor) -> None:
    model.train()
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(chosen, 0.5)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def grads(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-7) for name in a)


def test_1_two_turns_pairs_untouched_streaming_agrees() -> None:
    t, m = load(V1)
    first: list[Any] = []
    r, h = m.chat(t, "你好", history=first, do_sample=False, max_length=40)
    assert first == []
    assert h == [("你好", r)]
    assert len(set(r)) > 5
    last = list(m.stream_chat(t, "再说", history=h, do_sample=False, max_length=120))[-1]
    assert last == m.chat(t, "再说", history=h, do_sample=False, max_length=120)


def test_2_the_callers_list_and_the_cache() -> None:
    t, m = load(V3)
    mine: list[Any] = []
    m.chat(t, "hi", history=mine, do_sample=False, max_length=30)
    assert [x["role"] for x in mine] == ["user"]
    options: dict[str, Any] = {"do_sample": False, "return_past_key_values": True}
    *_, (_, h, past) = m.stream_chat(t, "hi", history=[], max_length=30, **options)
    n = past[0][0].shape[0]
    *_, (_, h, past) = m.stream_chat(t, "more", history=h, past_key_values=past, max_length=60, **options)
    assert past[0][0].shape[0] > n
    assert len(h) == 4


def test_3_the_old_p_tuning_snippet_then_int4_in_two_orders() -> None:
    t1 = row()[0]
    c = AutoConfig.from_pretrained(release(V1), **KW, pre_seq_len=4)
    prompt = t1(["问"], return_tensors="pt")
    plain = AutoModel.from_pretrained(release(V1), **KW).quantize(4).float().eval()
    without = plain(**prompt).logits
    torch.manual_seed(0)
    full = {"transformer.prefix_encoder.embedding.weight": torch.randn(4, 2 * 2 * 64) * 3}
    cut = {k[len("transformer.prefix_encoder.") :]: v for k, v in full.items() if "prefix_encoder" in k}
    outs, logits = [], []
    for order in ((4, "half"), ("half", 4)):
        m = AutoModel.from_pretrained(release(V1), config=c, **KW)
        m.transformer.prefix_encoder.load_state_dict(cut)
        for each in order:
            m = m.half() if each == "half" else m.quantize(4)
        m.transformer.prefix_encoder.float()
        outs.append(m.eval().generate(**prompt, do_sample=False, max_new_tokens=5))
        logits.append(m(**prompt).logits.float())
    assert torch.equal(*outs)
    assert torch.equal(*logits)
    assert (logits[0] - without).abs().max() > 0.1


def test_4_a_training_batch_with_a_hand_made_mask() -> None:
    t1, _, ids = row()
    _, m1 = load(V1)
    core = load_parts(release(V1), dtype="float32").model
    n, length = ids[0].tolist().index(t1.bos_token_id), ids.shape[1]
    hide = torch.ones(1, 1, length, length).tril()
    hide[..., :n] = 1
    y = ids.clone()
    y[:, :n] = -100
    mask = ids[0].tolist().index(t1.gmask_token_id)
    positions = torch.tensor([[*range(n), *[mask] * (length - n)], [*[0] * n, *range(1, length - n + 1)]])[None]
    loss = m1(ids, attention_mask=hide < 0.5, position_ids=positions, labels=y).loss
    core_loss = functional.cross_entropy(core(ids)[0, :-1], y[0, 1:])
    assert torch.allclose(loss, core_loss, atol=1e-6)
    assert m1(ids, attention_mask=(hide < 0.5).logical_not(), labels=y).loss != loss
    loss.backward()
    core_loss.backward()
    own = m1.transformer.layers[1].mlp.dense_4h_to_h.weight.grad
    assert torch.allclose(own, core.model.layers[1].mlp.down_proj.weight.grad, atol=1e-6)  # type: ignore[union-attr,operator]


def test_5_lora_on_published_names_read_back_by_the_core(tmp_path: Path) -> None:
    _, _, ids = row()
    p = lora(load(V1)[1])
    step(p, ids)
    p.save_pretrained(tmp_path)
    old = {k: v for k, v in p.named_parameters() if v.requires_grad}
    assert all(".attention." in k or ".dense" in k for k in old)
    core = load_parts(release(V1), adapter=tmp_path, dtype="float32").model
    with torch.no_grad():
        assert torch.allclose(core(ids), p(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(core(ids), load(V1)[1](ids).logits, atol=1e-3)
    fresh = lora(load(V1)[1])
    assert fresh.load_state_dict(old, strict=False).unexpected_keys == []
    with torch.no_grad():
        assert torch.equal(fresh(input_ids=ids).logits, p(input_ids=ids).logits)


def test_6_a_hand_written_map_block_class_hooks() -> None:
    t, m = load(V2)
    names = ["embedding.word_embeddings", "rotary_pos_emb", "encoder.final_layernorm", "output_layer"]
    mp = {**{f"transformer.{name}": "cpu" for name in names}, "lm_head": "cpu"}
    mp |= {f"transformer.encoder.layers.{number}": "cpu" for number in range(2)}
    m2 = accelerate.dispatch_model(m, mp, force_hooks=True)
    seen: list[int] = []
    b = m2.transformer.encoder.layers[1]
    b.self_attention.query_key_value.register_forward_hook(lambda *x: seen.append(1))
    with torch.no_grad():
        m2(**t("abc", return_tensors="pt"))
    assert seen == [1]
    assert type(b).__name__ == "GLMBlock"


def test_7_head_in_fp32_freeze_by_name() -> None:
    _, _, ids = row()
    m = load(V1)[1].bfloat16()
    cast = {"forward": lambda s, x: torch.nn.Sequential.forward(s, x).float()}
    m.lm_head = type("Cast", (torch.nn.Sequential,), cast)(m.lm_head)
    assert m(ids).logits.dtype == torch.float32
    for name, weight in m.named_parameters():
        weight.requires_grad = "layers.1." in name
    m(ids, labels=ids).loss.backward()
    assert {n.split(".")[2] for n, w in m.named_parameters() if w.grad is not None} == {"1"}


def test_8_fill_train_choose() -> None:
    t, m = load(GL, AutoModelForSeq2SeqLM)
    x = t.build_inputs_for_generation(t("北京是中国的[MASK]。", return_tensors="pt"), max_gen_length=12)
    o = m.generate(**x, max_new_tokens=8, eos_token_id=t.eop_token_id, do_sample=False)
    assert t.decode(o[0].tolist()).count("<|startofpiece|>") == 1
    batch = t(["天空是[MASK]。", "大海是很蓝的[MASK]"], return_tensors="pt", padding=True)
    z = t.build_inputs_for_generation(batch, targets=["蓝", "颜色很深"], max_gen_length=8)
    q = m(**z)
    wanted = functional.cross_entropy(q.logits.flatten(0, 1).float(), z["labels"].flatten())
    assert torch.allclose(q.loss, wanted)
    core = load_parts(release(GL), dtype="float32").model
    ids = x["input_ids"]
    with torch.no_grad():
        for _ in range(o.shape[1] - ids.shape[1]):
            ids = torch.cat([ids, core(ids, logits_at="last").argmax(-1, keepdim=True)], 1)
    assert torch.equal(ids, o)


def test_9_sentence_vectors() -> None:
    for name, axis in ((V2, 0), (G4, 1)):
        t, m = load(name)
        states = m(**t("abc", return_tensors="pt"), output_hidden_states=True).hidden_states
        assert states[-1].shape[1 - axis] == 1
        assert len(states) == 3


def test_10_round_trip(tmp_path: Path) -> None:
    t, m = load(V2)
    ids2 = t("abc", return_tensors="pt")
    m = m.quantize(8)
    m.save_pretrained(tmp_path)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(release(V2) / file, tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)[1](**ids2).logits, m(**ids2).logits)
        core = load_parts(tmp_path, dtype="float32", compute="exact").model
        assert torch.equal(core(ids2["input_ids"]), m(**ids2).logits)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="dense_4h_to_h"):
        load(tmp_path)


def test_11_trainer_checkpointing_deepcopy(tmp_path: Path) -> None:
    _, _, ids = row()
    p = lora(load(V1)[1])

    class Mine(Trainer):  # type: ignore[misc]
        def save_model(self, out: Any = None, _internal_call: bool = False) -> None:
            Path(out).mkdir(parents=True, exist_ok=True)
            trained = {k: v for k, v in self.model.named_parameters() if v.requires_grad}
            torch.save(trained, f"{out}/chatglm-lora.pt")

    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=1, report_to=[], use_cpu=True, remove_unused_columns=False,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": ids[0], "labels": ids[0]}] * 4
    before = grads(p, ids)
    trainer = Mine(p, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    assert torch.load(tmp_path / "out" / "chatglm-lora.pt").keys() == before.keys()
    g1 = grads(p, ids)
    p.gradient_checkpointing_enable()
    p.enable_input_require_grads()
    assert same(g1, grads(p, ids))
    q = copy.deepcopy(p)
    step(q, ids)
    assert same(g1, grads(p, ids))


def test_12_seeded_sampling_with_a_list_of_stops() -> None:
    t, m = load(V3)
    x = t.build_chat_input("hi", role="user")
    e = [t.eos_token_id, t.get_command("<|user|>"), t.get_command("<|observation|>")]
    options: dict[str, Any] = {"do_sample": True, "top_p": 0.8, "max_new_tokens": 9, "eos_token_id": e}

    def run(f: Any) -> Any:
        torch.manual_seed(7)
        return f()

    a = run(lambda: m.generate(**x, **options))
    *_, b = run(lambda: list(m.stream_generate(**x, **options)))
    assert torch.equal(a, b)
    s = TextIteratorStreamer(t, skip_prompt=True)
    thread = threading.Thread(target=run, args=(lambda: m.generate(**x, **options, streamer=s),))
    thread.start()
    assert "".join(s) == t.decode(a[0, x["input_ids"].shape[1] :])
    thread.join()
