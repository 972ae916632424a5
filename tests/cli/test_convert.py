"""`glm convert`: what it prints and how it exits."""

import json
from pathlib import Path

import pytest
import torch

from glmkit import load
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.taught import Taught, write_taught
from glmkit.checkpoint.weights import expected_tensors
from glmkit.cli import main as cli
from glmkit.config import GLMConfig
from support.finetuning import toy_base


@pytest.fixture
def source(tmp_path: Path) -> Path:
    config = GLMConfig(
        family="glm", vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, max_positions=40, norm_eps=1e-5,
        embedding_dropout=0.1, attention_dropout=0.1, hidden_dropout=0.1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    infos = expected_tensors(config, torch.float16)
    state = {name: torch.randn(info.shape, generator=generator).half() for name, info in infos.items()}
    (tmp_path / "source").mkdir()
    write_model(tmp_path / "source", config, state)
    return tmp_path / "source"


def test_summary(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    assert cli.main(["convert", str(source), str(made), "--to", "megatron", "--tensor-parallel", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f"wrote {made}: glm, glmkit -> megatron, 2 ranks"
    ranks = [torch.load(path, weights_only=True)["module"] for path in sorted(made.glob("release/*.pt"))]
    count = sum(tensor.nbytes for rank in ranks for tensor in rank.values())
    assert f"{count:,} bytes (float16 {count / 1000:.2f} kB), 2 files, " in lines[1]
    assert lines[2].startswith("  verified: 37 tensors read again and equal")
    assert lines[-1] == f'next: glm fill {made} "… [MASK] …"'
    assert err == ""
    assert (made / "latest").read_text() == (made / "latest_checkpointed_iteration.txt").read_text() == "release"


def test_json(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(source), str(tmp_path / "made"), "--to=paddle", "--dtype=float32", "--no-verify", "--json"]
    assert cli.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "paddle"
    assert report["files"] == ["model_state.pdparams"]
    assert report["verify_seconds"] is None
    assert report["dtypes"] == {"float32": report["bytes"]}


def test_mistakes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert cli.main(["convert", str(source), str(tmp_path / "made"), *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert not (tmp_path / "made").exists()
        return err

    assert "choose one of glmkit, huggingface, megatron, paddle" in refused("--to", "gguf")
    assert "arguments are required: --to" in refused()
    assert "never cut over ranks" in refused("--to", "glmkit", "--tensor-parallel", "2")
    assert "float64" in refused("--to", "paddle", "--dtype", "float64")
    assert "did you mean --tensor-parallel" in refused("--to", "paddle", "--tensor-paralel", "2")


def test_our_tokenizer_and_what_was_taught_go_along_and_are_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = toy_base(tmp_path / "base")
    taught = Taught(quirks=("left_cut",), source_length=30, target_length=20, columns={"prompt": "q", "response": "a"})
    write_taught(base, taught)
    whole, asked = load(base, device="cpu"), {"seed": 1, "max_tokens": 4}
    for layout, words in (("paddle", []), ("paddle", ["--weights=safetensors"]), ("huggingface", []), ("megatron", [])):
        made = tmp_path / f"{layout}{len(words)}"
        assert cli.main(["convert", str(base), str(made), f"--to={layout}", *words]) == 0
        assert "copied as they are: LICENSE, glmkit_tuning.json, special_tokens.json, tokenizer.json" in (
            capsys.readouterr().out
        )
        lm = load(made, device="cpu")
        assert lm.tokenizer.fingerprint() == whole.tokenizer.fingerprint()
        assert lm.parts.taught == taught
        if layout == "paddle":  # Hugging Face's file has another activation
            assert lm.fill("The small [MASK] ran.", **asked) == whole.fill("The small [MASK] ran.", **asked)
