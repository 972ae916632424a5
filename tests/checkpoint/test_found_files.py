"""Files as they are found: wrapped names, mixed types, copies, mixed-up ranks, odd settings beside the weights."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.open import open_checkpoint
from glmkit.errors import CheckpointError, GLMKitError
from glmkit.loading import load_parts
from support.variants import EOP, Sizes, make_chatglm, make_glm, make_glm130b, make_multiquery

SMALL = Sizes(2, 2, 8, 16)
IDS = torch.tensor([[5, 9, 33, 12]])
Change = Callable[[dict[str, Tensor]], dict[str, Tensor] | None]


def rewrite(path: Path, change: Change) -> None:
    content = torch.load(path, weights_only=False)
    inner = content.get("module", content)
    changed = change(inner) or inner
    torch.save({**content, "module": changed} if "module" in content else changed, path)


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module.", "base_model.model.", "module.model."])
@pytest.mark.parametrize("kind", ["bin", "ranks"])
def test_names_behind_wrappers(prefix: str, kind: str, tmp_path: Path) -> None:
    wanted = make_glm(tmp_path / "glm", SMALL, kind).parts.model(IDS)
    path = next((tmp_path / "glm").rglob("*mp_rank*" if kind == "ranks" else "*.bin"))
    rewrite(path, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert torch.equal(load_parts(tmp_path / "glm").model(IDS), wanted)


@pytest.mark.parametrize("others", ["float16", "bfloat16", "float32"])
def test_mixed_types_compute_in_the_one_that_holds_them_all(others: str, tmp_path: Path) -> None:
    make_chatglm(tmp_path, SMALL, "bin")
    rewrite(
        tmp_path / "pytorch_model.bin",
        lambda tensors: {n: t if "norm" in n else t.to(getattr(torch, others)) for n, t in tensors.items()},
    )
    model = load_parts(tmp_path).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert bool(model(IDS).isfinite().all())


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64"])
def test_types_that_no_checkpoint_has(dtype: str, tmp_path: Path) -> None:
    make_multiquery(tmp_path, SMALL, "bin")
    name = "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"
    rewrite(tmp_path / "pytorch_model.bin", lambda tensors: {**tensors, name: tensors[name].to(getattr(torch, dtype))})
    with pytest.raises(CheckpointError, match=rf"layers.1.mlp.dense_h_to_4h.weight is {dtype}, the config asks for"):
        load_parts(tmp_path)


def test_a_bad_number_is_reported_by_both_names(tmp_path: Path) -> None:
    make_chatglm(tmp_path, SMALL, "bin")
    name = "transformer.layers.1.attention.query_key_value.bias"
    rewrite(tmp_path / "pytorch_model.bin", lambda tensors: {**tensors, name: tensors[name] / 0})
    with pytest.raises(CheckpointError, match=rf"infinite values in {name} \(model.layers.1.self_attn.q_proj.bias\)"):
        load_parts(tmp_path)


@pytest.mark.parametrize("difference", [0, 1])
def test_a_tensor_in_two_shards(difference: int, tmp_path: Path) -> None:
    made = make_multiquery(tmp_path, SMALL, "bin")
    names, files = list(made.tensors), [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    first, second = ({name: made.tensors[name] for name in part} for part in (names[:9], names[9:]))
    (tmp_path / "pytorch_model.bin").unlink()
    torch.save(first, tmp_path / files[0])
    torch.save({**second, names[3]: made.tensors[names[3]] + difference}, tmp_path / files[1])
    index = {**dict.fromkeys(first, files[0]), **dict.fromkeys(second, files[1])}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    both = f"{names[3]} is in {files[0]} and in {files[1]}"
    if difference:
        with pytest.raises(CheckpointError, match=f"{both}, with other numbers"):
            open_checkpoint(tmp_path)
    else:
        assert f"{both}, the same in both" in open_checkpoint(tmp_path).notes


def test_ranks_that_were_mixed_up(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_glm130b(tmp_path / f"whole{seed}", SMALL, "ranks", seed)
        convert(tmp_path / f"whole{seed}", tmp_path / f"cut{seed}", to="sat", tensor_parallel=2)
    files = [sorted((tmp_path / f"cut{seed}").rglob("mp_rank*")) for seed in (0, 1)]
    kept = [path.read_bytes() for path in files[0]]
    for path, data in zip(files[0], reversed(kept), strict=True):
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the rank files are in the wrong order"):
        open_checkpoint(tmp_path / "cut0")
    for path in files[0]:
        path.write_bytes(kept[0])
    with pytest.raises(CheckpointError, match="ranks 0 and 1 hold the same part of the model"):
        open_checkpoint(tmp_path / "cut0")
    shutil.copy(files[1][1], files[0][1])
    with pytest.raises(CheckpointError, match=r"layers.0.input_layernorm.weight.* should be the same on every rank"):
        open_checkpoint(tmp_path / "cut0")


@pytest.mark.parametrize(
    ("text", "stops", "note"),
    [
        ('{"eos_token_id": [7, 8], "pad_token_id": null}', [7, 8], None),
        ('{"eos_token_id": [7, [8]]}', [EOP], r"eos_token_id \[7, \[8\]\] left out"),
        ('{"eos_token_id": 99999}', [EOP], "eos_token_id 99999 left out, no id of a vocabulary of 98"),
        ("[1, 2]", [EOP], "left out: .*generation_config.json holds list"),
        ("{", [EOP], "left out: .*generation_config.json is not valid JSON"),
    ],
)
def test_generation_settings(text: str, stops: list[int], note: str | None, tmp_path: Path) -> None:
    make_chatglm(tmp_path, SMALL, "bin")
    (tmp_path / "generation_config.json").write_text(text)
    opened = open_checkpoint(tmp_path)
    assert list(opened.generation.stop_ids) == stops
    found = [line for line in opened.notes if "generation_config" in line]
    if note is None:
        assert not found
    else:
        assert pytest.raises(AssertionError, match=note).matches(AssertionError(found[0]))


def test_configs_with_a_byte_order_mark_or_several_stops(tmp_path: Path) -> None:
    make_chatglm(tmp_path, SMALL, "bin")
    settings(tmp_path, eos_token_id=[EOP, 2])
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    opened = open_checkpoint(tmp_path)
    assert opened.generation.stop_ids == (EOP, 2)
    assert opened.config.special is not None
    assert opened.config.special.eop == EOP


@pytest.mark.parametrize("key", ["num_layers", "hidden_size", "vocab_size", "inner_hidden_size", "num_attention_heads"])
@pytest.mark.parametrize("size", [10**9, 10**12, 10**30])
def test_absurd_sizes_are_refused_at_once(key: str, size: int, tmp_path: Path) -> None:
    make_chatglm(tmp_path, Sizes(1, 2, 8, 16), "bin")
    settings(tmp_path, **{key: size})
    with pytest.raises(GLMKitError) as caught:
        load_parts(tmp_path)
    assert str(size) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_to_nothing(tmp_path: Path) -> None:
    make_chatglm(tmp_path / "model", SMALL, "bin")
    path = tmp_path / "model" / "pytorch_model.bin"
    path.unlink()
    path.symlink_to(tmp_path / "blobs" / "0a1b")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a link to .*0a1b, which is not there"):
        open_checkpoint(tmp_path / "model")


def test_the_number_of_heads_is_all_that_rank_files_lack(tmp_path: Path) -> None:
    made = make_glm(tmp_path, SMALL, "ranks")
    (tmp_path / "model_config.json").unlink()
    parts = load_parts(tmp_path, config={"num_heads": SMALL.heads})
    assert torch.equal(parts.model(IDS), made.parts.model(IDS))
    with pytest.raises(CheckpointError, match="give config="):
        load_parts(tmp_path, config={"num_heads": 3})


def test_a_source_that_changes_is_not_published(tmp_path: Path) -> None:
    make_multiquery(tmp_path / "model", SMALL, "bin")
    path = tmp_path / "model" / "pytorch_model.bin"

    def touch(step: object) -> None:
        os.utime(path, (1, 1))

    with pytest.raises(CheckpointError, match="changed while it was converted"):
        convert(tmp_path / "model", tmp_path / "new", to="glmkit", progress=touch)
    assert not (tmp_path / "new").exists()
