"""Published adapters on published bases of several sizes, through the public call, against the network by hand.

The reference computes on the published tensors, from the papers' and remote code's formulas; nothing of ours is in it.
Legend: B rows, T tokens, P prefix length, L layers, H heads, K key/value heads, D head width.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import glmkit
from glmkit.adapters.attach import merge_adapter, set_trainable
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.model import GLM
from glmkit.model.cache import KVCache

MASK, GMASK, SOP, EOP, PAD = 70, 71, 74, 75, 3


@dataclass(frozen=True)
class Sizes:
    """One base and one prefix. `groups` 0: ChatGLM-6B; otherwise ChatGLM2-6B with so many key/value heads."""

    layers: int
    heads: int
    head: int
    groups: int
    inner: int
    length: int
    projection: tuple[int, int] | None = None  # width of the table, inner width
    claims: bool | None = None  # what the settings say of the projection, None: the truth

    @property
    def width(self) -> int:
        return self.heads * self.head

    @property
    def shared(self) -> int:
        return self.groups or self.heads


CASES = {
    "6b table": Sizes(3, 4, 16, 0, 40, 7),
    "6b projection": Sizes(2, 3, 8, 0, 96, 1, (24, 24)),
    "6b wide projection": Sizes(1, 5, 32, 0, 50, 12, (160, 37)),
    "6b denied projection": Sizes(2, 2, 24, 0, 64, 5, (48, 48), False),
    "6b claimed projection": Sizes(2, 2, 24, 0, 64, 5, None, True),
    "2 table": Sizes(4, 6, 16, 3, 44, 9),
    "2 projection": Sizes(2, 4, 32, 2, 60, 4, (64, 128)),
    "2 one group, denied": Sizes(3, 4, 8, 1, 60, 130, (8, 9), False),
}


def tensors_of(size: Sizes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(base, prefix encoder) under published names, float32."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.25

    width, inner, rows = size.width, size.inner, size.width + 2 * size.shared * size.head
    start, attention = ("transformer.", "attention") if not size.groups else ("transformer.encoder.", "self_attention")
    gates = 2 if size.groups else 1
    table = "transformer.word_embeddings.weight" if not size.groups else "transformer.embedding.word_embeddings.weight"
    base = {table: random(80, width), f"{start}final_layernorm.weight": 1 + random(width)}
    base |= {"transformer.output_layer.weight": random(80, width)} if size.groups else {"lm_head.weight": base[table]}
    if not size.groups:
        base[f"{start}final_layernorm.bias"] = random(width)
    for layer in range(size.layers):
        at = f"{start}layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            base[f"{at}{norm}.weight"] = 1 + random(width)
            if not size.groups:
                base[f"{at}{norm}.bias"] = random(width)
        linears = {f"{attention}.query_key_value": (rows, width), f"{attention}.dense": (width, width)}
        linears |= {"mlp.dense_h_to_4h": (gates * inner, width), "mlp.dense_4h_to_h": (width, inner)}
        for name, shape in linears.items():
            base[f"{at}{name}.weight"] = random(*shape)
            if not size.groups or "query" in name:
                base[f"{at}{name}.bias"] = random(shape[0])
    total = 2 * size.layers * size.shared * size.head
    if size.projection is None:
        return base, {"embedding.weight": random(size.length, total)}
    table_width, middle = size.projection
    return base, {
        "embedding.weight": random(size.length, table_width),
        "trans.0.weight": random(middle, table_width),
        "trans.0.bias": random(middle),
        "trans.2.weight": random(total, middle),
        "trans.2.bias": random(total),
    }


def settings_of(size: Sizes) -> dict[str, Any]:
    common = {"num_layers": size.layers, "hidden_size": size.width, "num_attention_heads": size.heads}
    common |= {"layernorm_epsilon": 1e-5, "model_type": "chatglm", "pad_token_id": PAD, "eos_token_id": EOP}
    if not size.groups:
        ids = {"mask_token_id": MASK, "gmask_token_id": GMASK, "bos_token_id": SOP}
        return common | ids | {
            "architectures": ["ChatGLMModel"], "vocab_size": 80, "inner_hidden_size": size.inner,
            "max_sequence_length": 256, "position_encoding_2d": True,
        }  # fmt: skip
    return common | {
        "architectures": ["ChatGLMModel"], "padded_vocab_size": 80, "ffn_hidden_size": size.inner,
        "kv_channels": size.head, "seq_length": 256, "multi_query_attention": True, "add_qkv_bias": True,
        "multi_query_group_num": size.groups, "rmsnorm": True, "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True, "add_bias_linear": False, "original_rope": True,
    }  # fmt: skip


def write(size: Sizes, folder: Path) -> tuple[Path, Path, dict[str, Tensor], dict[str, Tensor]]:
    base, prefix = tensors_of(size)
    settings = settings_of(size)
    places = folder / "base", folder / "prefix"
    for place in places:
        place.mkdir()
    torch.save(base, places[0] / "pytorch_model.bin")
    torch.save({f"transformer.prefix_encoder.{name}": t for name, t in prefix.items()}, places[1] / "pytorch_model.bin")
    (places[0] / "config.json").write_text(json.dumps(settings))
    claims = size.projection is not None if size.claims is None else size.claims
    more = {"pre_seq_len": size.length, "prefix_projection": claims}
    (places[1] / "config.json").write_text(json.dumps(settings | more))
    return *places, base, prefix


def reference(
    size: Sizes, base: dict[str, Tensor], prefix: dict[str, Tensor], ids_T: list[int], *, paddle: bool = False
) -> Tensor:
    """Logits (T,V) of one row without padding, computed whole.

    paddle: as PaddleNLP has ChatGLM-6B, with exact frequencies and the model's own number of layers in the residual.
    """
    past = prefix["embedding.weight"]
    if size.projection is not None:
        past = torch.tanh(past @ prefix["trans.0.weight"].T + prefix["trans.0.bias"])
        past = past @ prefix["trans.2.weight"].T + prefix["trans.2.bias"]
    past_PNKD = past.view(size.length, 2 * size.layers, size.shared, size.head)
    count, ids = len(ids_T), torch.tensor(ids_T)
    visible = torch.ones(count, count).tril().bool()
    place, block = torch.arange(count), torch.zeros(count, dtype=torch.long)
    if not size.groups:
        start = ids_T.index(SOP)
        visible[:, :start] = True
        place[start:] = ids_T.index(GMASK) if GMASK in ids_T else ids_T.index(MASK)
        block[start:] = torch.arange(1, count - start + 1)
    visible = torch.cat([torch.ones(count, size.length, dtype=torch.bool), visible], 1)
    start_name = "transformer.encoder." if size.groups else "transformer."

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, base[f"{name}.weight"], base.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        if size.groups:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * base[f"{name}.weight"]
        return functional.layer_norm(x, x.shape[-1:], base[f"{name}.weight"], base[f"{name}.bias"], 1e-5)

    def halves(x: Tensor, at: Tensor) -> Tensor:  # (T,H,E): pairs (i, i + E/2), frequencies rounded to float16
        speed = 10000.0 ** -(torch.arange(0, x.shape[-1], 2).float() / x.shape[-1])
        speed = speed if paddle else speed.half().float()
        angle = (at[:, None].float() * speed)[:, None]
        one, two = x.chunk(2, -1)
        return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1)

    def neighbours(x: Tensor, at: Tensor) -> Tensor:  # (T,H,E): pairs (2i, 2i + 1)
        speed = 10000.0 ** -(torch.arange(0, x.shape[-1], 2).float() / x.shape[-1])
        angle = (at[:, None].float() * speed)[:, None]
        one, two = x[..., 0::2], x[..., 1::2]
        turned = [one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()]
        return torch.stack(turned, -1).flatten(-2)

    def turn(x: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        if size.groups:
            return torch.cat([neighbours(one, place), two], -1)
        return torch.cat([halves(one, place), halves(two, block)], -1)

    x = base["transformer.embedding.word_embeddings.weight" if size.groups else "transformer.word_embeddings.weight"]
    x = x[ids]
    for layer in range(size.layers):
        at = f"{start_name}layers.{layer}."
        kind = "self_attention" if size.groups else "attention"
        inner = norm(f"{at}input_layernorm", x)
        fused = linear(f"{at}{kind}.query_key_value", inner)
        if size.groups:
            q, k, v = fused.split([size.width, *[size.shared * size.head] * 2], -1)
            q, k, v = (part.view(count, -1, size.head) for part in (q, k, v))
        else:
            q, k, v = fused.view(count, size.heads, 3 * size.head).split(size.head, -1)
        q, k = turn(q), turn(k)
        k, v = torch.cat([past_PNKD[:, 2 * layer], k]), torch.cat([past_PNKD[:, 2 * layer + 1], v])
        k, v = (part.repeat_interleave(size.heads // size.shared, 1) for part in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(size.head)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out = linear(f"{at}{kind}.dense", torch.einsum("hts,shd->thd", weights, v).flatten(1))
        if size.groups:
            x = x + out
            one, two = linear(f"{at}mlp.dense_h_to_4h", norm(f"{at}post_attention_layernorm", x)).chunk(2, -1)
            x = x + linear(f"{at}mlp.dense_4h_to_h", functional.silu(one) * two)
        else:
            alpha = math.sqrt(2 * (size.layers if paddle else 28))  # the remote code fixes 28, whatever the model has
            x = norm(f"{at}post_attention_layernorm", inner * alpha + out)
            up = functional.gelu(linear(f"{at}mlp.dense_h_to_4h", x), approximate="tanh")
            x = x * alpha + linear(f"{at}mlp.dense_4h_to_h", up)
    x = norm(f"{start_name}final_layernorm", x)
    return x @ base["transformer.output_layer.weight" if size.groups else "lm_head.weight"].T


def prompts(size: Sizes) -> list[list[int]]:
    """Rows of different lengths, ready for an answer."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(4, 60, (40,), generator=generator).tolist()
    if size.groups:
        return [words[:11], words[11:16], words[16:32]]
    return [[*words[:9], GMASK, SOP], [*words[9:12], MASK, *words[12:18], SOP], [*words[18:32], GMASK, SOP]]


def without(size: Sizes, prefix: dict[str, Tensor]) -> tuple[Sizes, dict[str, Tensor]]:
    """The same with a prefix of no positions."""
    return replace(size, length=0), {**prefix, "embedding.weight": prefix["embedding.weight"][:0]}


def greedy(model: GLM, rows: list[list[int]], steps: int) -> tuple[list[list[int]], Tensor]:
    """Tokens and logits (B,steps,V) of cached argmax decoding of left-padded rows."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    real = torch.arange(longest) >= longest - torch.tensor([[len(row)] for row in rows])
    cache = KVCache(model.config, len(rows), longest + steps, dtype=torch.float32, device=ids.device)
    with torch.no_grad():
        prefix = model._part_a(ids, None, real, None, None)
        place = model._positions(ids, None, prefix, real, None, None)[:, :, -1:]
        logits = [model(ids, attention_mask=real, cache=cache, logits_at="last")]
        two_streams = model.config.positions == "rope_2d"
        for _ in range(steps - 1):
            place = place + torch.tensor([[[0], [1]]] if two_streams else [[[1], [0]]])
            chosen = logits[-1].argmax(-1)[:, None]
            logits.append(model(chosen, position_ids=place, cache=cache, logits_at="last"))
    return torch.stack([each.argmax(-1) for each in logits], 1).tolist(), torch.stack(logits, 1)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_cached_greedy(case: str, tmp_path: Path) -> None:
    size = CASES[case]
    base_dir, prefix_dir, base, prefix = write(size, tmp_path)
    lm = glmkit.load(base_dir, adapter=prefix_dir, device="cpu")
    rows, steps = prompts(size), 5
    for row in rows:
        with torch.no_grad():
            found = lm.model(torch.tensor([row]))[0]
        torch.testing.assert_close(found, reference(size, base, prefix, row), rtol=1e-4, atol=1e-4)
    tokens, logits = greedy(lm.model, rows, steps)
    for row, chosen, scores in zip(rows, tokens, logits, strict=True):
        whole = reference(size, base, prefix, row + chosen)[len(row) - 1 : -1]
        torch.testing.assert_close(scores, whole, rtol=1e-4, atol=1e-4)
        assert whole.argmax(-1).tolist() == chosen
    said = [note for note in lm.parts.notes if "projection" in note]
    assert len(said) == (size.claims is not None)


@pytest.mark.parametrize("case", ["6b projection", "2 table"])
def test_gradients_reach_the_prefix_alone_and_are_the_references(case: str, tmp_path: Path) -> None:
    size = CASES[case]
    base_dir, prefix_dir, base, prefix = write(size, tmp_path)
    model = glmkit.load(base_dir, adapter=prefix_dir, device="cpu").model
    row = prompts(size)[2]
    set_trainable(model, True)
    model(torch.tensor([row]))[0].square().sum().backward()
    leaves = {name: value.clone().requires_grad_() for name, value in prefix.items()}
    reference(size, base, leaves, row).square().sum().backward()
    learned = {name.removeprefix("prefix."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert learned.keys() == leaves.keys()
    for name, leaf in leaves.items():
        torch.testing.assert_close(learned[name], leaf.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("6b table", {"to": "glmkit"}),
        ("6b projection", {"to": "paddle"}),
        ("6b table", {"to": "huggingface", "shard_size": 9000}),
        ("2 projection", {"to": "glmkit"}),
        ("2 table", {"to": "paddle"}),
    ],
    ids=str,
)
def test_a_base_in_another_layout(case: str, options: dict[str, Any], tmp_path: Path) -> None:
    size = CASES[case]
    base_dir, prefix_dir, base, prefix = write(size, tmp_path)
    convert(base_dir, tmp_path / "other", family="chatglm2" if size.groups else None, **options)
    model = glmkit.load(tmp_path / "other", adapter=prefix_dir, device="cpu").model
    for row in prompts(size):
        with torch.no_grad():
            expected = reference(size, base, prefix, row, paddle=options["to"] == "paddle")
            torch.testing.assert_close(model(torch.tensor([row]))[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("case", ["6b table", "6b wide projection", "2 table", "2 one group, denied"])
def test_lora_of_peft_on_every_linear(case: str, root: bool, tmp_path: Path) -> None:
    """W + scale B A on the published, fused matrices; one module has a rank and an alpha of its own."""
    size = CASES[case]
    base_dir, _, base, prefix = write(size, tmp_path)
    size, prefix = without(size, prefix)
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for name in [name for name in base if ".layers." in name and base[name].dim() == 2]:
        rank, alpha = (5, 3.0) if "layers.0.mlp.dense_4h_to_h" in name else (3, 7.0)
        outputs, inputs = base[name].shape
        a, b = (torch.randn(*shape, generator=generator) * 0.1 for shape in ((rank, inputs), (outputs, rank)))
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        base[name] = base[name] + alpha / (math.sqrt(rank) if root else rank) * b @ a
    folder = tmp_path / "lora"
    folder.mkdir()
    torch.save(tensors, folder / "adapter_model.bin")
    own = {"rank_pattern": {r"layers\.0\.mlp\.dense_4h_to_h": 5}, "alpha_pattern": {"0.mlp.dense_4h_to_h": 3}}
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 7, "use_rslora": root, **own}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    model = glmkit.load(base_dir, adapter=folder, device="cpu").model
    for row in prompts(size):
        with torch.no_grad():
            torch.testing.assert_close(
                model(torch.tensor([row]))[0], reference(size, base, prefix, row), rtol=1e-4, atol=1e-4
            )
    merge_adapter(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model(torch.tensor([row]))[0], reference(size, base, prefix, row), rtol=1e-4, atol=1e-4
        )
