"""Merging an adapter into its base: any base, any layout, and nothing where it cannot be done."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.published import TINY
from glmkit.adapters.adapter import NewAdapter, Origin
from glmkit.adapters.attach import attached, new_adapter
from glmkit.adapters.directory import save_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.taught import Taught, write_taught
from glmkit.cli.main import main
from glmkit.errors import CheckpointError, RequestError
from glmkit.families.family import family_named
from glmkit.loading import load_parts
from glmkit.merging import merge
from glmkit.model import GLM, init_weights
from glmkit.tokenizer.composed import with_new_tokens
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(4)

EVERY = LoraOptions(("all",), rank=2, bias="all", modules_to_save=("embed_tokens", "model.norm"))
TAUGHT = Taught("chat", (), (2, 9, 11))
BASES = {"chatglm-6b": None, "chatglm2-6b": "chatglm2", "chatglm3-6b": "chatglm3", "glm-hf": None, "glm4-native": None}


def fixture(name: str) -> Path:
    return shared_dir("fixtures", name)


def row(model: GLM, *, plain: bool = False) -> Tensor:
    special = None if plain else model.config.special
    ids = torch.arange(20, 36)[None]
    if special is not None and special.gmask is not None and special.sop is not None:
        ids[0, 8], ids[0, 9] = special.gmask, special.sop
    with torch.no_grad():
        return model(ids)


def made(
    base: Path,
    folder: Path,
    options: NewAdapter,
    *,
    family: str | None = None,
    size: float = 0.05,
    taught: Taught = TAUGHT,
) -> Tensor:
    """An adapter with random numbers of that size, saved; the logits of the base with it."""
    parts = load_parts(base, family=family, dtype="float32")
    new_adapter(parts.model, options, family=parts.family, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attached(parts.model).parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator) / max(1, parameter.dim()))
    save_adapter(parts.model, folder, origin=Origin(None, str(base), taught))
    return row(parts.model.eval())


@pytest.mark.parametrize("layout", ["glmkit", "published"])
@pytest.mark.parametrize("name", BASES)
def test_merged_is_base_and_adapter_in_every_layout(name: str, layout: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(fixture(name), base)
    (base / "MODEL_LICENSE").write_text("the licence")
    (base / "generation_config.json").write_text(json.dumps({"top_p": 0.8, "eos_token_id": 2}))
    family = BASES[name]
    options = LoraOptions(("all",), rank=2) if name == "glm-hf" else EVERY
    expected = made(base, tmp_path / "a", options, family=family)
    parts = load_parts(base, family=family)
    assert parts.family is not None
    target = layout if layout == "glmkit" else parts.family.layouts[0].name
    report = merge(base, tmp_path / "a", tmp_path / "merged", layout=target, dtype="float32", family=family)
    again = load_parts(tmp_path / "merged", family=family, dtype="float32")
    torch.testing.assert_close(row(again.model), expected, atol=1e-5, rtol=1e-5)
    assert (report.layout, report.dtype, report.bits) == (target, "float32", None)
    assert report.left == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "merged" / "MODEL_LICENSE").read_text() == "the licence"
    assert again.layout == target
    assert again.taught == TAUGHT
    assert {2, 9, 11} <= set(again.generation.stop_ids)
    if target == "huggingface":
        settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
        assert settings["top_p"] == 0.8
        assert {2, 9, 11} <= set(settings["eos_token_id"])
    assert not [path for path in tmp_path.iterdir() if path.name not in ("base", "a", "merged")]


def test_merged_floats_are_those_of_the_base_unless_said_otherwise(tmp_path: Path) -> None:
    base = fixture("chatglm-6b-int4")
    parts = load_parts(base, dtype="float32")
    expected = made(base, tmp_path / "a", EVERY)
    report = merge(base, tmp_path / "a", tmp_path / "merged")
    again = load_parts(tmp_path / "merged", dtype="float32")
    assert again.config.quantization is None
    assert (report.dtype, report.bits) == ("float16", None)
    change, effect = row(again.model) - row(parts.model), expected - row(parts.model)
    assert float((change * effect).sum() / effect.square().sum()) == pytest.approx(1, abs=0.02)
    assert report.left == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("layout", ["glmkit", "huggingface"])
@pytest.mark.parametrize("taught", [Taught(), TAUGHT])
def test_prompts_are_those_of_the_adapter(taught: Taught, layout: str, tmp_path: Path) -> None:
    """Also on a base that was tuned with others before."""
    shutil.copytree(fixture("chatglm-6b"), tmp_path / "base")
    write_taught(tmp_path / "base", Taught("chatglm_tuning", (), (7,)))
    made(tmp_path / "base", tmp_path / "a", LoraOptions(("all",), rank=2), taught=taught)
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "merged", layout=layout)
    assert load_parts(tmp_path / "merged").taught == taught


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm-6b-int4", "chatglm-6b-int4-qe"])
def test_quantised_anew_the_rest_of_the_effect_is_measured(name: str, tmp_path: Path) -> None:
    base = fixture(name)
    made(base, tmp_path / "a", LoraOptions(("all",), rank=2), size=0.3)
    report = merge(base, tmp_path / "a", tmp_path / "merged", quantize="int4")
    again = load_parts(tmp_path / "merged")
    assert again.config.quantization is not None
    assert again.config.quantization.bits == report.bits == 4
    assert again.config.quantization.embeddings == (name != "chatglm-6b-int4")
    assert 0.5 < report.left < 1.5
    if name == "chatglm-6b":  # numbers between two integers: of many tiny changes some cross the middle
        return
    made(base, tmp_path / "tiny", LoraOptions(("all",), rank=2), size=1e-4)
    with pytest.raises(RequestError, match=r"has no effect left in int4: .* -?\d.*% remain") as refused:
        merge(base, tmp_path / "tiny", tmp_path / "none", quantize="int4")
    assert (refused.value.param, refused.value.code) == ("quantize", "no_effect")
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    base = fixture("chatglm2-6b")
    made(base, tmp_path / "prefix", PrefixOptions(3), family="chatglm2")
    made(base, tmp_path / "idle", LoraOptions(), family="chatglm2", size=0.0)
    made(base, tmp_path / "lora", LoraOptions(), family="chatglm2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    before = sorted(tmp_path.iterdir())
    for adapter, options, words in (
        ("prefix", {}, "a prefix adds keys and values, no weights"),
        ("idle", {}, "changes no logit: there is nothing to merge"),
        ("lora", {"layout": "sat"}, "has no 'sat' layout; choose one of glmkit, huggingface"),
    ):
        with pytest.raises(RequestError, match=words):
            merge(base, tmp_path / adapter, tmp_path / "merged", family="chatglm2", **options)
    with pytest.raises(RequestError, match="is a model without adapter"):
        merge(base, None, tmp_path / "merged", family="chatglm2")
    with pytest.raises(FileExistsError, match="not empty"):
        merge(base, tmp_path / "lora", tmp_path / "full", family="chatglm2")
    with pytest.raises(CheckpointError, match="made on other weights"):
        merge(fixture("chatglm3-6b"), tmp_path / "lora", tmp_path / "merged", family="chatglm3")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.exhaustive
def test_new_tokens_are_merged_with_their_tokenizer(tmp_path: Path) -> None:
    config = TINY["chatglm2"].config.__class__.from_dict(
        {**TINY["chatglm2"].config.to_dict(), "family": "chatglm3", "vocab_size": 65024, "special": None}
    )
    tokenizer = family_named("chatglm3").tokenizer(shared_dir("tokenizers", "chatglm2-chatglm3"), config)
    assert tokenizer is not None
    model, base = GLM(config), tmp_path / "base"
    init_weights(model, config, 0)
    base.mkdir()
    write_model(base, config, dict(model.named_parameters()))
    tokenizer.save(base)
    extended = with_new_tokens(tokenizer, ["<客服>"], config.vocab_size)
    new_adapter(model, LoraOptions(new_tokens=("<客服>",)), tokenizer=extended, seed=1)
    with torch.no_grad():
        for parameter in attached(model).parameters():
            parameter.add_(0.1)
    save_adapter(model, tmp_path / "a", origin=Origin(None, str(base), TAUGHT))
    for layout in ("glmkit", "huggingface"):
        report = merge(tmp_path / "a", None, tmp_path / layout, layout=layout)
        again = load_parts(tmp_path / layout, family="chatglm3")
        assert again.tokenizer is not None
        assert again.tokenizer.encode("<客服>") == [64798]
        expected = row(model.eval(), plain=True)
        torch.testing.assert_close(row(again.model, plain=True), expected, atol=1e-5, rtol=1e-5)
        assert report.base == str(base)


def test_the_verb(tmp_path: Path, capsys: Any) -> None:
    base = fixture("chatglm3-6b")
    made(base, tmp_path / "a", LoraOptions(), family="chatglm3")
    words = ["merge", str(base), str(tmp_path / "a"), "--output", str(tmp_path / "m"), "--family", "chatglm3"]
    assert main([*words, "--layout", "hf"]) == 0
    shown = capsys.readouterr().out
    assert f"wrote {tmp_path / 'm'}: {base} with {tmp_path / 'a'} in it, huggingface layout, float32" in shown
    assert "opened again and compared: logits differ by" in shown
    assert "answers end at the ids 2, 9, 11" in shown
    assert main([*words, "--layout", "hf"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "m")
    assert main(["merge", str(tmp_path / "a"), "--output", str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == pytest.approx(1, abs=1e-4)
