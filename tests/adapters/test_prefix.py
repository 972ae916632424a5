"""P-Tuning v2 prefixes: against transformers' own past keys and values, the published files, and bad files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.published import TINY, adapter_delta, encoder_of, ids, tiny_model, transformers_pair
from glmkit.adapters.attach import detach_adapter, merge_adapter, new_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.adapters.prefix.encoder import PrefixEncoder, build_encoder, prefix_width
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError, GLMKitError, RequestError
from glmkit.families.family import all_families

pytestmark = pytest.mark.sampled(4)

CONFIG = TINY["chatglm2"].config


def random_tensors(config: GLMConfig, *, length: int = 5, projection: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    width = prefix_width(config)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (length, 7 if projection else width)}
    if projection:
        shapes |= {
            "trans.0.weight": (9, 7),
            "trans.0.bias": (9,),
            "trans.2.weight": (width, 9),
            "trans.2.bias": (width,),
        }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(
    folder: Path, tensors: dict[str, Tensor], prefix: str = "transformer.prefix_encoder.", **settings: Any
) -> Path:
    folder.mkdir()
    torch.save({prefix + name: value for name, value in tensors.items()}, folder / "pytorch_model.bin")
    if settings:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("projection", [False, True])
def test_layer_i_takes_items_2i_and_2i_plus_1(projection: bool) -> None:
    tensors = random_tensors(CONFIG, projection=projection)
    encoder = build_encoder(tensors, CONFIG, dtype=torch.float32, source="x").eval()
    rows = tensors["embedding.weight"]
    if projection:
        inner = torch.tanh(rows @ tensors["trans.0.weight"].T + tensors["trans.0.bias"])
        rows = inner @ tensors["trans.2.weight"].T + tensors["trans.2.bias"]
    heads, width = CONFIG.kv_heads, CONFIG.head_dim
    keys, values = encoder()
    for layer in range(CONFIG.num_layers):
        start = 2 * layer * heads * width
        key, value = rows[:, start:].split(heads * width, dim=1)[:2]
        torch.testing.assert_close(keys[layer], key.view(5, heads, width))
        torch.testing.assert_close(values[layer], value.view(5, heads, width))


def test_logits_equal_transformers_with_past_keys_and_values(tmp_path: Path) -> None:
    """The causal half: a prefix is a cache that positions do not count."""
    transformers = pytest.importorskip("transformers", reason="the extra [dev] is not installed")
    reference, model = transformers_pair(transformers)
    config = model.config
    folder = write(tmp_path / "a", random_tensors(config), pre_seq_len=5, prefix_projection=False)
    apply_adapter(model, folder)
    keys, values = encoder_of(model)()
    cache = transformers.DynamicCache()
    for layer in range(3):
        key, value = (x[layer].transpose(0, 1).expand(2, -1, -1, -1) for x in (keys, values))
        cache.update(key, value, layer)
    tokens = ids(config)
    positions = torch.arange(tokens.shape[1]).expand(2, -1)
    with torch.no_grad():
        expected = reference(tokens, past_key_values=cache, position_ids=positions).logits
        assert float((model(tokens) - expected).abs().max()) < 1e-4
        assert float((model(tokens) - reference(tokens).logits).abs().max()) > 0.1


@pytest.mark.parametrize(
    "name_prefix", ["transformer.prefix_encoder.", "prefix_encoder.", "", "module.prefix_encoder."]
)
@pytest.mark.parametrize("projection", [False, True])
def test_published_files_round_trip(projection: bool, name_prefix: str, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, projection=projection)
    settings = {"pre_seq_len": 5, "prefix_projection": projection, "num_layers": 3, "kept": [1]}
    folder = write(tmp_path / "in", tensors, name_prefix, **settings)
    model = tiny_model("chatglm2")
    tokens = ids(CONFIG)
    before = model(tokens)
    info = apply_adapter(model, folder)
    assert (info.kind, info.size, info.modules, info.notes) == ("prefix", 5, 3, ())
    expected = model(tokens)
    assert adapter_delta(model, tokens) == pytest.approx(float((expected - before).detach().abs().max()), rel=1e-5)
    assert save_adapter(model, tmp_path / "out") == []
    written = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert written.keys() == {f"transformer.prefix_encoder.{name}" for name in tensors}
    assert all(torch.equal(written[f"transformer.prefix_encoder.{name}"], value) for name, value in tensors.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == settings
    detach_adapter(model)
    assert torch.equal(model(tokens), before)
    assert apply_adapter(model, tmp_path / "out").notes == ()
    assert torch.equal(model(tokens), expected)


def test_without_settings_the_shapes_decide(tmp_path: Path) -> None:
    model = tiny_model("chatglm2")
    info = apply_adapter(model, write(tmp_path / "a", random_tensors(CONFIG)))
    assert info.size == 5
    assert "5 rows decide" in info.notes[0]


def test_written_settings_of_the_base_come_from_the_layout(tmp_path: Path) -> None:
    model = tiny_model("chatglm2")
    new_adapter(model, PrefixOptions(3, projection=True))
    layout = all_families()["chatglm2"].layouts[0]
    assert save_adapter(model, tmp_path / "a", layout=layout) == []
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    assert settings["pre_seq_len"] == 3
    assert settings["prefix_projection"] is True
    assert settings["num_layers"] == 3
    assert layout.read_config(settings).config.kv_heads == 2
    apply_adapter(tiny_model("chatglm2"), tmp_path / "a")


@pytest.mark.parametrize("projection", [False, True])
def test_paddle_files(projection: bool, tmp_path: Path) -> None:
    """Linears (in, out), all keys before all values, under a Sequential's names."""
    from adapters.paddle_files import write_paddle

    tensors = random_tensors(CONFIG, projection=projection)
    heads, width, layers = CONFIG.kv_heads, CONFIG.head_dim, CONFIG.num_layers

    def halves(tensor: Tensor, axis: int) -> Tensor:
        items = tensor.split(heads * width, dim=axis)
        return torch.cat([items[2 * i] for i in range(layers)] + [items[2 * i + 1] for i in range(layers)], dim=axis)

    if projection:
        stored = {
            "0.weight": tensors["embedding.weight"],
            "1.weight": tensors["trans.0.weight"].T,
            "1.bias": tensors["trans.0.bias"],
            "3.weight": halves(tensors["trans.2.weight"], 0).T,
            "3.bias": halves(tensors["trans.2.bias"], 0),
        }
    else:
        stored = {"0.weight": halves(tensors["embedding.weight"], 1)}
    settings = {
        "num_prefix_tokens": 5,
        "prefix_projection": projection,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "multi_query_group_num": 2,
        "hidden_size": 32,
        "prefix_dropout": 0.0,
        "tensor_parallel_degree": -1,
    }
    folder = write_paddle(tmp_path / "p", "prefix", stored, settings)
    model = tiny_model("chatglm2")
    assert apply_adapter(model, folder).notes == ()
    held = {name: value.detach() for name, value in encoder_of(model).state_dict().items()}
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("projection", [False, True])
def test_paddle_files_are_written_as_they_are_read(projection: bool, tmp_path: Path) -> None:
    layout = next(layout for layout in all_families()["chatglm"].layouts if layout.container == "paddle")
    model = tiny_model("chatglm")
    torch.manual_seed(1)
    new_adapter(model, PrefixOptions(4, projection=projection, dropout=0.0))
    expected = model(ids(model.config))
    assert save_adapter(model, tmp_path / "a", layout=layout) == []
    detach_adapter(model)
    info = apply_adapter(model, tmp_path / "a")
    assert info.notes == ()
    assert torch.equal(model(ids(model.config)), expected)
    settings = json.loads((tmp_path / "a" / "prefix_config.json").read_text())
    assert settings["num_prefix_tokens"] == 4
    with pytest.raises(CheckpointError, match="heads of hidden_size / num_heads|table 24 wide"):
        grouped = tiny_model("chatglm2")
        new_adapter(grouped, PrefixOptions(4, projection=projection))
        save_adapter(grouped, tmp_path / "b", layout=layout)


def test_weights_stay_float32_and_the_output_follows_the_base(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", random_tensors(CONFIG, projection=True))
    model = tiny_model("chatglm2").bfloat16()
    apply_adapter(model, folder)
    encoder = encoder_of(model)
    exact = [parameter.clone() for parameter in encoder.parameters()]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model.to(dtype)
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
        assert {tensor.dtype for part in encoder() for tensor in part} == {dtype}
    assert all(torch.equal(one, two) for one, two in zip(exact, encoder.parameters(), strict=True))
    assert model.bfloat16()(ids(CONFIG)).dtype == torch.bfloat16


@pytest.mark.parametrize("family", sorted(TINY))
def test_only_the_prefix_learns(family: str) -> None:
    model = tiny_model(family).train()
    torch.manual_seed(0)
    new_adapter(model, PrefixOptions(4, projection=True, dropout=0.0))
    own = {f"prefix.{name}" for name, _ in encoder_of(model).named_parameters()}
    model(ids(model.config)).float().square().mean().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == own
    assert all(float(p.grad.abs().max()) > 0 for n, p in model.named_parameters() if n in own and p.grad is not None)
    detach_adapter(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_is_published_and_only_in_training() -> None:
    encoder = PrefixEncoder(CONFIG, 50)
    encoder.train()
    share = float(torch.stack(encoder()[0]).eq(0).float().mean())
    assert 0.07 < share < 0.13
    assert not bool(torch.stack(encoder.eval()()[0]).eq(0).any())


BAD: dict[str, Any] = {
    "layers": (lambda t: t, {"num_layers": 4}, "num_layers 4, this model has 3"),
    "length": (lambda t: t, {"pre_seq_len": 9}, "5 rows, the settings say pre_seq_len 9"),
    "projection": (
        lambda t: {"embedding.weight": torch.ones(5, 32)},
        {"pre_seq_len": 5, "prefix_projection": True},
        "lacks the projection's weights",
    ),
    "width": (
        lambda t: {"embedding.weight": t["embedding.weight"][:, :-24]},
        {},
        "120 numbers a position, this model needs 2 x 3 layers x 2 key/value heads x 12 channels = 144",
    ),
    "others": (lambda t: {**t, "model.extra": torch.ones(2)}, {}, "no part of a prefix encoder|beside the prefix"),
    "part": (lambda t: {**t, "trans.0.weight": torch.ones(2, 2)}, {}, "has no trans.0.bias"),
    "vector": (lambda t: {"embedding.weight": torch.ones(4)}, {}, "must be \\(length, width\\)"),
    "nan": (lambda t: {n: v * float("nan") for n, v in t.items()}, {}, "NaN or infinity"),
    "whole": (lambda t: {"lm_head.weight": torch.ones(2, 2)}, {}, "missing|no part of a prefix encoder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_and_nothing_changes(name: str, tmp_path: Path) -> None:
    change, settings, message = BAD[name]
    folder = write(tmp_path / "a", change(random_tensors(CONFIG)), **settings)
    model = tiny_model("chatglm2")
    with pytest.raises(CheckpointError, match=message) as caught:
        apply_adapter(model, folder)
    assert "\n" not in str(caught.value)
    assert model.prefix is None


def test_directories_that_hold_no_adapter(tmp_path: Path) -> None:
    model = tiny_model("chatglm2")
    with pytest.raises(CheckpointError, match="not a directory"):
        apply_adapter(model, tmp_path / "nowhere")
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-3000").mkdir()
    with pytest.raises(CheckpointError, match="did you mean .*checkpoint-3000"):
        apply_adapter(model, tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"transformer.word_embeddings.weight": torch.ones(2, 2)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="as the source, not as adapter"):
        apply_adapter(model, folder)
    torch.save(
        {"transformer.prefix_encoder.embedding.weight": torch.ones(2, 2), "x": torch.ones(1)},
        folder / "pytorch_model.bin",
    )
    with pytest.raises(CheckpointError, match="x beside the prefix encoder"):
        apply_adapter(model, folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_prefix_among_the_weights_of_its_base(sharded: bool, tmp_path: Path) -> None:
    """Full fine-tuning saves both; only the directory's own base may leave the other tensors aside."""
    tensors = {f"transformer.prefix_encoder.{name}": value for name, value in random_tensors(CONFIG).items()}
    other = {"transformer.output_layer.weight": torch.ones(2, 2)}
    if sharded:
        torch.save(other, tmp_path / "pytorch_model-00001-of-00002.bin")
        torch.save(tensors, tmp_path / "pytorch_model-00002-of-00002.bin")
        homes = dict.fromkeys(other, "pytorch_model-00001-of-00002.bin")
        homes |= dict.fromkeys(tensors, "pytorch_model-00002-of-00002.bin")
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    else:
        torch.save({**other, **tensors}, tmp_path / "pytorch_model.bin")
    model = tiny_model("chatglm2")
    with pytest.raises(CheckpointError, match="as the source and as the adapter"):
        apply_adapter(model, tmp_path)
    assert apply_adapter(model, tmp_path, beside_weights=True).size == 5


def test_one_adapter_at_a_time_and_no_merge_of_a_prefix(tmp_path: Path) -> None:
    model = tiny_model("chatglm2")
    with pytest.raises(RequestError, match="no adapter"):
        detach_adapter(model)
    new_adapter(model, PrefixOptions(2))
    with pytest.raises(RequestError, match="carries an adapter already"):
        new_adapter(model, PrefixOptions(2))
    with pytest.raises(RequestError, match="cannot be merged"):
        merge_adapter(model)
    with pytest.raises(GLMKitError, match="at least 1"):
        new_adapter(tiny_model("chatglm2"), PrefixOptions(0))
