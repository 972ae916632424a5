"""Published P-Tuning v2 checkpoints against the reference's own logits, prefix and cached decoding."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters.published import adapter_delta, encoder_of
from glmkit.adapters.directory import save_adapter
from glmkit.loading import load_parts
from glmkit.model import GLM
from glmkit.model.cache import KVCache
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(4)

FOLDERS = [f"chatglm{n}-6b-ptuning-v2-{kind}" for n in ("", "2") for kind in ("embedding", "projection")]
LOGITS, GREEDY = 3e-5, 1e-4


def tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.asarray(value))


def largest(one: Tensor, two: Tensor) -> float:
    return float((one - two).detach().abs().max())


def load(folder: Path) -> tuple[GLM, dict[str, Any], dict[str, Any]]:
    base = folder.parent / folder.name.partition("-ptuning")[0]
    model = load_parts(base, adapter=folder, device="cpu").model
    inputs = folder / "inputs.json" if (folder / "inputs.json").exists() else base / "inputs.json"
    return model, dict(np.load(folder / "expected.npz")), json.loads(inputs.read_text())


def greedy(model: GLM, tokens: Tensor, real: Tensor | None, positions_BN2: Tensor | None, steps: int) -> list[Tensor]:
    """Argmax decoding through the cache: tokens (B,n), logits (B,n,V), prefix slots. Positions: fed with each step."""
    cache = KVCache(model.config, len(tokens), tokens.shape[1] + steps, dtype=torch.float32, device=tokens.device)
    chosen, rows, feed = [], [], tokens
    for step in range(steps):
        later = None if positions_BN2 is None or step == 0 else positions_BN2[:, step, :, None]
        with torch.no_grad():
            mask = real if step == 0 else None
            logits = model(feed, position_ids=later, attention_mask=mask, cache=cache, logits_at="last")
        rows.append(logits)
        chosen.append(logits.argmax(-1))
        feed = chosen[-1][:, None]
    return [torch.stack(chosen, 1), torch.stack(rows, 1), torch.tensor(cache.prefix)]


@pytest.mark.parametrize("name", FOLDERS)
def test_prefix_logits_and_cached_decoding(name: str, tmp_path: Path) -> None:
    folder = shared_dir("fixtures", name)
    model, expected, inputs = load(folder)
    keys, values = encoder_of(model)()
    past = tensor(expected["past_key_values"])[:, :, :, 0]
    # Rounding of fp32 depends on the processor; the largest of these numbers are above 16.
    assert largest(torch.stack([torch.stack(keys), torch.stack(values)], 1), past) < 1e-6 * max(1.0, past.abs().max())
    for case, given in inputs.items():
        if f"{case}.logits" not in expected:
            continue
        tokens = torch.tensor(given.get("padded_input_ids", given.get("input_ids")))
        real = None
        if "sequences" in given:
            lengths = [len(row) for row in given["sequences"]]
            real = torch.arange(tokens.shape[1]) >= tokens.shape[1] - torch.tensor(lengths)[:, None]
        with torch.no_grad():
            logits = model(tokens, attention_mask=real)
        wanted = tensor(expected[f"{case}.logits"])
        keep = torch.ones(tokens.shape, dtype=torch.bool) if real is None else real
        assert largest(logits[keep], wanted[keep]) < LOGITS, case
        assert adapter_delta(model, tokens) > 0.01
        if f"{case}.greedy_tokens" not in expected:
            continue
        prompt = tokens[:, : given.get("prompt_len", tokens.shape[1])]
        wanted = tensor(expected[f"{case}.greedy_tokens"])
        positions = expected.get(f"{case}.greedy_position_ids")
        fed = None if positions is None else tensor(positions)
        chosen, rows, prefix = greedy(model, prompt, real, fed, wanted.shape[1])
        assert torch.equal(chosen, wanted), case
        assert largest(rows, tensor(expected[f"{case}.greedy_logits"])) < GREEDY, case
        assert prefix == past.shape[2]
    save_adapter(model, tmp_path / "again")
    theirs = torch.load(folder / "pytorch_model.bin", weights_only=True)
    ours = torch.load(tmp_path / "again" / "pytorch_model.bin", weights_only=True)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], value) and ours[key].dtype == value.dtype for key, value in theirs.items())
    settings = json.loads((folder / "config.json").read_text())
    settings["prefix_projection"] = any(".trans." in key for key in theirs)  # one of the published files says otherwise
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == settings
