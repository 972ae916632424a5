"""P-Tuning v2 as its scripts load, cast, train and save it."""

import copy
import json
import warnings
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from glmkit.errors import CheckpointError, MismatchWarning
from glmkit.loading import load_parts
from support.hf_models import open_model, prompt_ids
from support.shared import shared_dir

TUNED = (
    ("chatglm-6b", "chatglm-6b-ptuning-v2-embedding"),
    ("chatglm-6b", "chatglm-6b-ptuning-v2-projection"),
    ("chatglm2-6b", "chatglm2-6b-ptuning-v2-projection"),
)
INSIDE = "transformer.prefix_encoder."
pytestmark = [
    pytest.mark.filterwarnings("ignore::glmkit.errors.GuessWarning"),
    pytest.mark.filterwarnings("ignore:float16 on a CPU"),
]


def saved(tuned: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the published training wrote: the encoder's tensors under their whole names, and the config."""
    folder = shared_dir("fixtures", tuned)
    return torch.load(folder / "pytorch_model.bin"), json.loads((folder / "config.json").read_text())


def built(base: str, values: dict[str, Any], **options: Any) -> Any:
    """The base with an encoder that is not loaded yet."""
    keys = {key: values[key] for key in ("pre_seq_len", "prefix_projection")}
    config = AutoConfig.from_pretrained(shared_dir("fixtures", base), trust_remote_code=True, **keys)
    return AutoModel.from_pretrained(shared_dir("fixtures", base), config=config, trust_remote_code=True, **options)


def cut(full: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(INSIDE) :]: value for key, value in full.items() if key.startswith(INSIDE)}


@pytest.mark.parametrize(("base", "tuned"), TUNED)
def test_the_published_snippet(base: str, tuned: str, tmp_path: Path) -> None:
    """Strict names; the first call sees the prefix as the core does; it is saved and found again with the weights."""
    full, values = saved(tuned)
    model = built(base, values).float().eval()
    assert str(model.transformer.prefix_encoder.load_state_dict(cut(full))).startswith("<All keys")
    core = load_parts(shared_dir("fixtures", base), adapter=shared_dir("fixtures", tuned), dtype="float32").model
    ids = prompt_ids(model)
    with torch.no_grad():
        wanted = core(ids)
        assert torch.equal(model(ids).logits, wanted)
        assert not torch.allclose(open_model(base)(ids).logits, wanted, atol=1e-2)
        other = built(base, values).float().eval()
        other.load_state_dict(full, strict=False)
        assert torch.equal(other(ids).logits, wanted)
        model.save_pretrained(tmp_path)
        assert torch.equal(open_model(tmp_path)(ids).logits, wanted)
        assert torch.equal(load_parts(tmp_path, dtype="float32").model(ids), wanted)
    with pytest.raises(RuntimeError, match="Missing|Unexpected"):
        model.transformer.prefix_encoder.load_state_dict({"embedding.weights": next(iter(full.values()))})


def test_a_table_put_into_the_parameters() -> None:
    full, values = saved(TUNED[0][1])
    ids = prompt_ids(first := built(TUNED[0][0], values).float().eval())
    second = copy.deepcopy(first)
    first.transformer.prefix_encoder.load_state_dict(cut(full))
    second.transformer.prefix_encoder.embedding._parameters["weight"] = full[f"{INSIDE}embedding.weight"]
    with torch.no_grad():
        assert torch.equal(second(ids).logits, first(ids).logits)


@pytest.mark.parametrize(("base", "tuned"), TUNED[::2])
def test_every_order_of_casts(base: str, tuned: str) -> None:
    """Loading, integers, half and a float32 prefix in all orders: the same tokens and logits."""
    full, values = saved(tuned)
    outputs: list[tuple[Tensor, Tensor]] = []
    steps: dict[str, Any] = {
        "load": lambda model: model.transformer.prefix_encoder.load_state_dict(cut(full)),
        "integers": lambda model: model.quantize(4),
        "half": lambda model: model.half(),
        "float": lambda model: model.transformer.prefix_encoder.float(),
    }
    for order in permutations(steps):
        model = built(base, values, dtype=torch.float16)  # as the release is stored
        for each in order:
            steps[each](model)
        assert {value.dtype for value in model.transformer.prefix_encoder.parameters()} == {torch.float32}
        assert model.eval().dtype == torch.float16
        ids = prompt_ids(model)
        with torch.no_grad():
            outputs.append((model(ids).logits, model.generate(ids, do_sample=False, max_new_tokens=3)))
    for logits, tokens in outputs[1:]:
        assert torch.equal(logits, outputs[0][0])
        assert torch.equal(tokens, outputs[0][1])


def test_a_prefix_that_was_never_loaded_is_told_once() -> None:
    full, values = saved(TUNED[0][1])
    model = built(TUNED[0][0], values).float().eval()
    ids = prompt_ids(model)
    with pytest.warns(MismatchWarning, match="pre_seq_len=4.*neither loaded nor trained"):
        model.generate(ids, max_new_tokens=1)
    for filled in ("again", "loaded", "trained"):
        if filled != "again":
            model = built(TUNED[0][0], values).float().eval()
        if filled == "loaded":
            model.transformer.prefix_encoder.load_state_dict(cut(full))
        if filled == "trained":
            optimizer = torch.optim.SGD(model.transformer.prefix_encoder.parameters(), 0.1)
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error", MismatchWarning)
            model.generate(ids, max_new_tokens=1)


def test_a_directory_of_the_prefix_alone_says_what_it_is() -> None:
    with pytest.raises(CheckpointError, match=r"P-Tuning prefix only.*adapter="):
        AutoModel.from_pretrained(shared_dir("fixtures", TUNED[0][1]), trust_remote_code=True)


@pytest.mark.parametrize("base", ["chatglm-6b", "chatglm2-6b"])
def test_training_what_is_named_prefix_encoder(base: str, tmp_path: Path) -> None:
    """Filters by name, recomputation and the trainable tensors alone in a file, as the published trainer does it."""
    config = AutoConfig.from_pretrained(shared_dir("fixtures", base), pre_seq_len=4, prefix_projection=True)
    model = AutoModel.from_pretrained(shared_dir("fixtures", base), config=config).float()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "prefix_encoder" in name
    model.transformer.prefix_encoder.drop.p = 0.0
    ids = prompt_ids(model)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model.train()(ids, labels=ids).loss.backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    first = gradients()
    assert set(first) == {f"{INSIDE}{key}" for key in model.transformer.prefix_encoder.state_dict()}
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.config.use_cache = False
    second = gradients()
    assert all(torch.allclose(second[name], first[name], atol=1e-7) for name in first)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 1.0)
    for _ in range(3):
        gradients()
        optimizer.step()
    kept = {key: value for key, value in model.state_dict().items() if "prefix_encoder" in key}
    torch.save(kept, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    core = load_parts(shared_dir("fixtures", base), adapter=tmp_path, dtype="float32").model
    with torch.no_grad():
        assert torch.equal(core(ids), model.eval()(ids).logits)
