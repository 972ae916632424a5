"""O1 and O2 in 16 bits, as far as a CPU goes: fp16 with its loss scaling is tried in the CPU's own autocast.

On CUDA neither was ever run.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from glmkit.checkpoint.run_directory import read_state
from glmkit.errors import ConfigError
from glmkit.train import trainer as trainers
from glmkit.train.checkpoints import CheckpointStore
from glmkit.train.finetuning import finetune
from glmkit.train.finetuning_base import load_base, open_base, trained
from glmkit.train.metrics import read_metrics
from support.finetuning import toy_base, toy_rows, tuned_run, tuning_recipe

PLAIN = dict.fromkeys(("embedding_dropout", "attention_dropout", "hidden_dropout"), 0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_base(tmp_path_factory.mktemp("tuned") / "base", **PLAIN)


@pytest.fixture(scope="module")
def rows(base: Path) -> Path:
    return toy_rows(base.parent / "rows.jsonl")


def run(method: str, base: Path, rows: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    own = {} if method == "full" else {"adapter__dropout": 0.0}
    return tuned_run(method, base, rows, output, **own | overrides)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("method", "precision"), [("lora", "bf16"), ("ptuning", "fp16"), ("lora", "fp16")])
def test_o2_trains_as_fp32_does_and_goes_on_bit_for_bit(
    method: str, precision: str, base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses within what 16 bits round away; what is trained in float32, the rest in 16 bits; the scale is resumed."""
    monkeypatch.setattr(trainers, "is_cpu", lambda device: False)
    options = {"training__precision": precision, "training__opt_level": "O2", "training__max_steps": 4}
    options |= {"optimizer__learning_rate": 0.01, "schedule__lr_decay_iters": 4}
    plain = run(method, base, rows, tmp_path / "plain", **options | {"training__precision": "fp32"})
    whole = run(method, base, rows, tmp_path / "whole", **options)
    assert whole["losses"] == pytest.approx(plain["losses"], rel=0.01)
    assert whole["losses"] != plain["losses"]
    run(method, base, rows, tmp_path / "cut", **options | {"training__max_steps": 2})
    cut = run(method, base, rows, tmp_path / "cut", resume="auto", **options)
    assert cut["weights"] == whole["weights"]
    state = read_state(CheckpointStore(tmp_path / "cut").path(4))
    assert (state["scaler"] is None) == (precision == "bf16")
    if precision == "fp16":
        assert [line["loss_scale"] for line in read_metrics(tmp_path / "cut")] == [2.0**16] * 4
    config = tuning_recipe(method, base, [rows], tmp_path / "run", **options)
    model = load_base(config, open_base(config), torch.device("cpu")).model
    own = trained(model)
    assert {p.dtype for p in own.values()} == {torch.float32}
    frozen = {p.dtype for name, p in model.named_parameters() if name not in own}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float16}


@pytest.mark.exhaustive
def test_where_o2_changes_nothing_it_is_told(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, precision, why in (
        ("full", "bf16", "all weights are trained, in float32"),
        ("lora", "fp32", "fp32 has"),
    ):
        options = {"training__precision": precision, "training__opt_level": "O2", "training__max_steps": 1}
        finetune(tuning_recipe(method, base, [rows], tmp_path / method, **options))
        assert f"note: training.opt_level O2 changes nothing: {why}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="precision fp16 needs CUDA"):
        finetune(tuning_recipe("lora", base, [rows], tmp_path / "half", training__precision="fp16"), quiet=True)
