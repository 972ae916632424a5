"""Parity that needs no recordings: with a zero block table and a causal mask, GLM's network is GPT-2's."""

import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from glmkit.model import GLM
from glmkit.objective.loss import linear_cross_entropy
from support.tiny import random_ids, tiny_config

_NAMES = {"attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
_NORMS = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}


def pair() -> tuple[GLM, GPT2LMHeadModel]:
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_positions=48, n_embd=32, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    model = GLM(tiny_config(max_positions=47, special=None))
    model.load_state_dict(to_glmkit(dict(reference.state_dict())), strict=True)
    return model, reference


def to_glmkit(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {"model.embed_block_positions.weight": torch.zeros(48, 32)}
    for name, value in published.items():
        parts = name.removeprefix("transformer.").split(".")
        if parts[0] == "wte":
            state["model.embed_tokens.weight"] = value
        elif parts[0] == "wpe":
            state["model.embed_positions.weight"] = value
        elif parts[0] == "ln_f":
            state[f"model.norm.{parts[1]}"] = value
        elif parts[0] == "h":
            layer, part, kind = f"model.layers.{parts[1]}", ".".join(parts[2:-1]), parts[-1]
            value = value.T.contiguous() if kind == "weight" and part not in _NORMS else value
            if part == "attn.c_attn":
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    state[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
            else:
                state[f"{layer}.{_NAMES.get(part) or _NORMS[part]}.{kind}"] = value
    return state


def test_logits_loss_and_gradients() -> None:
    model, reference = pair()
    ids = random_ids(3, 20)
    ours, theirs = model(ids), reference(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    hidden = model.hidden(ids)[:, :-1].flatten(0, 1)
    sums = linear_cross_entropy(hidden, model.head_weight, ids[:, 1:].flatten())
    loss = sums.loss_sum / sums.num_targets
    expected = functional.cross_entropy(theirs[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    published = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    gradients = to_glmkit(published)
    for name, parameter in model.named_parameters():
        if name != "model.embed_block_positions.weight":  # GPT-2 has no such table
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def test_it_is_causal_without_special_ids() -> None:
    model, _ = pair()
    ids = random_ids(1, 20)
    changed = ids.clone()
    changed[0, 15] = (ids[0, 15] + 1) % 64
    assert torch.equal(model(ids)[:, :15], model(changed)[:, :15])
