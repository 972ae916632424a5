"""Runs and checkpoints taken for models and adapters, and tokens of an adapter's own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import glmkit
from adapters.published import TINY
from glmkit.adapters.adapter import NewAdapter, Origin
from glmkit.adapters.attach import attached, detach_adapter, new_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter, write_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.run_directory import exported_step
from glmkit.checkpoint.taught import Taught, write_taught
from glmkit.cli.main import main
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError, GuessWarning, RequestError, TokenizerError
from glmkit.families.family import family_named, preset
from glmkit.loading import load_parts
from glmkit.model import GLM, init_weights
from glmkit.tokenizer.composed import with_new_tokens
from glmkit.train.checkpoints import CheckpointStore, write_final_model
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(3)

KINDS: dict[str, NewAdapter] = {"lora": LoraOptions(rank=2), "prefix": PrefixOptions(3)}
TAUGHT = Taught("belle", (), (2, 9))
IDS = torch.arange(5, 25)[None]


def base_directory() -> Path:
    return shared_dir("fixtures", "chatglm3-6b")


def logits(model: GLM) -> Tensor:
    with torch.no_grad():
        return model(IDS)


def made_run(folder: Path, options: NewAdapter, origin: Origin | None = None) -> tuple[Path, dict[int, Tensor]]:
    """A finished run of an adapter with two checkpoints, and the logits of each."""
    base = base_directory()
    parts = load_parts(base, family="chatglm3", dtype="float32")
    new_adapter(parts.model, options, family=parts.family, seed=1)
    store = CheckpointStore(folder)
    origin = origin or Origin("chatglm3", str(base), TAUGHT)
    expected = {}
    for step in (100, 200):
        with torch.no_grad():
            for number, parameter in enumerate(attached(parts.model).parameters()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        expected[step] = logits(parts.model.eval())
        path = store.save(
            step,
            write_model=lambda path: write_adapter(parts.model, path, origin=origin),  # type: ignore[arg-type, return-value]
            optimizer={"x": torch.zeros(2)},
            state={"state": {}},
        )
    (folder / "recipe.yaml").write_text("")
    write_final_model(folder, path)
    return folder, expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_an_adapter_is_its_base_with_it(kind: str, tmp_path: Path) -> None:
    run, expected = made_run(tmp_path / "run", KINDS[kind])
    shutil.copytree(run / "model", tmp_path / "alone" / "model")
    places = {"": 200, "model": 200, "checkpoint-100": 100, "checkpoint-200": 200, "checkpoints/step-00000100": 100}
    for place, step in places.items():
        for source in ({"source": run / place}, {"source": base_directory(), "adapter": str(run / place)}):
            lm = glmkit.load(**source, family="chatglm3", dtype="float32")
            assert torch.equal(logits(lm.model), expected[step])
            assert lm.parts.taught == TAUGHT
            assert set(TAUGHT.stop_ids) <= set(lm.parts.generation.stop_ids)
            assert attached(lm.model).info.path is not None
    alone = glmkit.load(tmp_path / "alone", family="chatglm3", dtype="float32")
    assert torch.equal(logits(alone.model), expected[200])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 150; it has checkpoint-200, checkpoint-100"):
        glmkit.load(run / "checkpoint-150")
    with pytest.raises(RequestError, match="is an adapter itself, of chatglm3; give its base as the model") as refused:
        glmkit.load(run, adapter=run)
    assert refused.value.param == "adapter"


def test_the_base_of_a_run_is_found_or_asked_for(tmp_path: Path) -> None:
    run, expected = made_run(tmp_path / "run", KINDS["lora"], Origin("bases/chatglm3.bin", str(tmp_path / "gone")))
    with pytest.raises(
        CheckpointError, match=f"its base {tmp_path}/gone is not there; give the base.*--adapter"
    ) as lost:
        glmkit.load(run)
    assert lost.value.code == "no_base"
    lm = glmkit.load(base_directory(), adapter=run, family="chatglm3", dtype="float32")
    assert torch.equal(logits(lm.model), expected[200])
    second, _ = made_run(tmp_path / "second", KINDS["lora"], Origin("run", str(run)))
    with pytest.raises(CheckpointError, match="which is one as well; merge that first: glm merge BASE"):
        glmkit.load(second)


def test_a_run_is_what_it_exported_until_it_goes_on(tmp_path: Path) -> None:
    run, expected = made_run(tmp_path / "run", KINDS["lora"])
    write_final_model(run, run / "checkpoints" / "step-00000100")
    with pytest.warns(GuessWarning, match="step-00000100 of it, which it exported as its best, is read"):
        lm = glmkit.load(run, family="chatglm3", dtype="float32")
    assert torch.equal(logits(lm.model), expected[100])
    shutil.copytree(run / "checkpoints" / "step-00000200", run / "checkpoints" / "step-00000300")
    assert exported_step(run) is None
    write_final_model(run, run / "checkpoints" / "step-00000300")
    assert not (run / "exported.json").exists()


def test_damage_in_a_run_of_an_adapter_is_seen(tmp_path: Path) -> None:
    run, expected = made_run(tmp_path / "run", KINDS["lora"])
    weights = run / "checkpoints" / "step-00000200" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="step-00000100 is read"):
        lm = glmkit.load(run, family="chatglm3", dtype="float32")
    assert torch.equal(logits(lm.model), expected[100])
    with pytest.raises(CheckpointError, match="adapter_model.safetensors"):
        glmkit.load(base_directory(), adapter=run / "checkpoint-200")


def test_two_checkpoints_one_after_another_on_one_model(tmp_path: Path) -> None:
    run, expected = made_run(tmp_path / "run", KINDS["prefix"])
    parts = load_parts(base_directory(), family="chatglm3", dtype="float32")
    plain = logits(parts.model)
    for step in (100, 200, 100):
        apply_adapter(parts.model, run / "checkpoints" / f"step-{step:08d}")
        assert torch.equal(logits(parts.model), expected[step])
        detach_adapter(parts.model)
        assert torch.equal(logits(parts.model), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_doctor_and_info_know_runs_of_adapters(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = made_run(tmp_path / "run", KINDS[kind])
    for place in (run, run / "checkpoints" / "step-00000100", run / "model"):
        report = examine(place)
        assert [finding for finding in report.findings if finding.level == "error"] == []
        assert report.facts["adapter"] == f"{kind} (torch)"
        assert report.facts["base"] == str(base_directory())
    assert main(["info", str(run), "--json"]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out)["layers"] == 3
    assert f"is an adapter; the sizes are those of its base {base_directory()}" in said


def test_a_tuned_model_keeps_what_it_was_taught(tmp_path: Path) -> None:
    parts = load_parts(base_directory(), family="chatglm3", dtype="float32")
    write_model(tmp_path, parts.config, dict(parts.model.named_parameters()), generation=parts.generation)
    write_taught(tmp_path, TAUGHT)
    again = load_parts(tmp_path)
    assert again.taught == TAUGHT
    assert {2, 9} <= set(again.generation.stop_ids)


# --- new tokens -------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "chatglm-6b": (130344, 184),
    "chatglm2-6b": (64794, 230),
    "chatglm3-6b": (64798, 226),
    "glm-4-9b": (151343, 209),
    "glm-large-chinese": (50010, 38),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_new_tokens_take_the_first_free_rows(name: str, tmp_path: Path) -> None:
    config = preset(name)
    folder = {
        "chatglm2-6b": "chatglm2-chatglm3",
        "chatglm3-6b": "chatglm2-chatglm3",
        "glm-4-9b": "glm4",
        "glm-large-chinese": "glm-chinese",
    }.get(name, name)
    family = family_named(config.family)
    tokenizer = family.tokenizer(shared_dir("tokenizers", folder), config)
    assert tokenizer is not None
    first, free = PUBLISHED[name]
    extended = with_new_tokens(tokenizer, ["<客服>"], config.vocab_size)
    assert extended.token_to_id("<客服>") == first
    assert extended.encode("你好<客服>好")[len(extended.encode("你好"))] == first
    assert tokenizer.encode("<客服>") != [first]
    with_new_tokens(tokenizer, [f"<{i}>" for i in range(free)], config.vocab_size)
    with pytest.raises(TokenizerError, match=f"{free + 1} new tokens do not fit.*{config.vocab_size} rows, {free} of"):
        with_new_tokens(tokenizer, [f"<{i}>" for i in range(free + 1)], config.vocab_size)
    assert with_new_tokens(extended, ["<客服>"], config.vocab_size).vocab_size == first + 1
    known = "的" if tokenizer.token_to_id("的") is not None else "[MASK]"
    for text, why in ((known, "is the token .* already"), (" ", "is blank")):
        with pytest.raises(TokenizerError, match=why):
            with_new_tokens(extended, [text], config.vocab_size)
    twice = with_new_tokens(extended, ["<b>"], config.vocab_size)
    twice.save(tmp_path)
    again = family.tokenizer(tmp_path, config)
    assert again is not None
    assert again.encode("<客服><b>") == twice.encode("<客服><b>")


def small_base(folder: Path) -> Path:
    """A model directory of few numbers with the tokenizer of ChatGLM3-6B."""
    config = replace(TINY["chatglm2"].config, family="chatglm3", vocab_size=65024, special=None, max_positions=512)
    tokenizer = family_named("chatglm3").tokenizer(shared_dir("tokenizers", "chatglm2-chatglm3"), config)
    assert tokenizer is not None
    model = GLM(config)
    init_weights(model, config, 0)
    folder.mkdir()
    write_model(folder, config, dict(model.named_parameters()))
    tokenizer.save(folder)
    return folder


def test_new_tokens_on_an_integer_table(tmp_path: Path) -> None:
    """Their rows lie behind the number of panels."""
    base = small_base(tmp_path / "base")
    parts = load_parts(base, quantize="int4", dtype="float32")
    assert parts.tokenizer is not None
    extended = with_new_tokens(parts.tokenizer, ["<客服>"], parts.config.vocab_size)
    ids = torch.tensor([extended.encode("你好<客服>在吗")])
    new_adapter(parts.model, LoraOptions(("q_proj",), rank=2, new_tokens=("<客服>",)), tokenizer=extended, seed=1)
    save_adapter(parts.model, tmp_path / "a", origin=Origin(None, str(base)))
    again = load_parts(base, quantize="int4", dtype="float32", adapter=tmp_path / "a").model
    with torch.no_grad():
        torch.testing.assert_close(again(ids), parts.model.eval()(ids), atol=1e-5, rtol=1e-5)


def test_new_tokens_are_trained_and_saved_with_the_adapter_and_its_tokenizer(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base")
    plain, parts = load_parts(base), load_parts(base)
    model, config, tokenizer = parts.model, parts.config, parts.tokenizer
    assert tokenizer is not None
    extended = with_new_tokens(tokenizer, ["<客服>", "<用户>"], config.vocab_size)
    ids = torch.tensor([extended.encode("你好<客服>在吗<用户>")])
    options = LoraOptions(("q_proj",), rank=2, new_tokens=("<客服>", "<用户>"))
    new_adapter(model, options, tokenizer=extended, seed=1)
    own = list(attached(model).parameters())
    optimizer = torch.optim.Adam(own, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(ids).log_softmax(-1)[..., 64798].sum().neg().backward()
        optimizer.step()
    with torch.no_grad():
        expected = model.eval()(ids)
        assert float((expected - plain.model(ids))[..., 64798].abs().max()) > 0.01
    save_adapter(model, tmp_path / "a", origin=Origin(None, str(base)))
    lm = glmkit.load(tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(lm.model(ids), expected, atol=1e-5, rtol=1e-5)
        changed = (lm.model.model.embed_tokens.weight != plain.model.model.embed_tokens.weight).any(1).nonzero()
    assert changed.flatten().tolist() == [64798, 64799]
    assert lm.tokenizer.encode("<客服>") == [64798]
    save_adapter(lm.model, tmp_path / "again")
    assert (tmp_path / "again" / "added_tokens.json").is_file()
    given = glmkit.load(base, adapter=tmp_path / "a", tokenizer=tmp_path / "again")
    assert given.tokenizer.encode("<用户>") == [64799]
    named = glmkit.load(base, adapters={"own": tmp_path / "a"})
    assert named.tokenizer_for("own").encode("<客服>") == [64798] != named.tokenizer.encode("<客服>")
    options = {"max_new_tokens": 4, "logprobs": 0}
    for name, alone in (("own", lm), (None, glmkit.load(base))):
        assert named.answers(["你<客服>"], adapter=name, **options) == alone.answers(["你<客服>"], **options)
    with pytest.raises(CheckpointError, match="'<客服>' as id 64798, and the tokenizer has no such token"):
        glmkit.load(base, adapter=tmp_path / "a", tokenizer=base)
    named = glmkit.load(base, adapters={"a": tmp_path / "a"}, dtype="float32")
    lengths = [named.continue_job("<客服>", adapter=name).prompt_tokens for name in ("a", None)]
    assert lengths[0] < lengths[1]  # the token alone
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    rows = {name: value for name, value in weights.items() if "lm_head" not in name}
    save_file(rows, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="lacks the row of lm_head for the new token '<客服>'"):
        glmkit.load(tmp_path / "a")
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    for file in ("added_tokens.json", "tokenizer.model"):
        (tmp_path / "a" / file).unlink()
        with pytest.raises(CheckpointError, match="has no such token|there is no tokenizer"):
            glmkit.load(tmp_path / "a")


@pytest.mark.exhaustive
def test_everything_that_an_adapter_can_train_goes_through_a_run(tmp_path: Path) -> None:
    base, rows = small_base(tmp_path / "base"), tmp_path / "rows.jsonl"
    rows.write_text("\n".join(['{"instruction": "翻译", "input": "你好", "output": "Hi<客服>"}'] * 4))
    words = ["--model", str(base), "--data", str(rows), "--output", str(tmp_path / "run"), "--max_steps", "2"]
    options = {
        "new_tokens": "[<客服>]",
        "modules_to_save": "[model.norm]",
        "bias": "all",
        "targets": "[q_proj, v_proj]",
        "layers_to_transform": "[0, 2]",
        "root": "true",
        "rank_pattern": "{layers.2.self_attn.v_proj: 3}",
    }
    words += [word for name, value in options.items() for word in (f"--adapter.{name}", value)]
    assert main(["finetune", "lora", *words, "--training.precision", "fp32", "--optimizer.learning_rate", "0.01"]) == 0
    lm, plain = glmkit.load(tmp_path / "run"), load_parts(base)
    found = attached(lm.model)
    assert (found.kind, found.info.modules, found.new_tokens) == ("lora", 4, {"<客服>": 64798})
    assert set(lm.parts.taught.stop_ids) == {2, 64795, 64797}
    ids = torch.tensor([lm.tokenizer.encode("你好<客服>")])
    with torch.no_grad():
        assert float((lm.model(ids) - plain.model(ids)).abs().max()) > 1e-3
    assert not torch.equal(lm.model.model.norm.weight, plain.model.model.norm.weight)
    assert main(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged"), "--layout", "hf"]) == 0
    merged = load_parts(tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(merged.model(ids), lm.model(ids), atol=1e-5, rtol=1e-5)
