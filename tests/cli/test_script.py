"""`glm script`: commands of the original documents, read word for word, and what they become."""

import importlib
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from glmkit.cli.main import VERBS, main
from glmkit.cli.old_scripts.command_line import SCRIPTS, read_command
from glmkit.cli.old_scripts.page import all_tables
from glmkit.cli.old_scripts.script_table import Script
from glmkit.cli.old_scripts.translate import translate
from glmkit.cli.old_scripts.translation import Machine, Translation
from glmkit.cli.parser import OneLineParser
from glmkit.errors import GLMKitError, RequestError
from glmkit.train.finetuning_recipes import FINETUNING
from support.seed_commands import ALL, CHATGLM_TUNING, GENERATION, PADDLENLP, PTUNING
from support.shared import ROOT, shared_dir

CPU, FOUR = Machine(), Machine(accelerators=4, float16=True)


def translated(command: str, machine: Machine = CPU) -> Translation:
    return translate(read_command(shlex.split(command)), machine)


def options(command: str, machine: Machine = CPU, *, step: int = 0) -> dict[str, str | None]:
    """Options of one native command, by name; a switch has None."""
    words = list(translated(command, machine).steps[step].words)
    found: dict[str, str | None] = {}
    for number, word in enumerate(words):
        if word.startswith("--"):
            value = words[number + 1] if number + 1 < len(words) else None
            found[word[2:]] = None if value is not None and value.startswith("--") else value
    return found


@pytest.mark.parametrize("command", ALL.values(), ids=ALL)
def test_a_command_of_the_documents_is_read(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert main(["script", *shlex.split(command), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(("glm ", "# reads "))
    assert main(["script", "--dry-run", *shlex.split(command)]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("command", ["python", "python3"])
def test_python_is_replaced(command: str) -> None:
    assert translated(f"{command} {GENERATION}") == translated(GENERATION)


def test_full_tuning_of_paddlenlp() -> None:
    found = options(PADDLENLP["full"])
    want = {
        "model.base": "THUDM/glm-large-chinese", "tuning.method": "full", "tuning.label_smoothing": "0.1",
        "data.source_length": "608", "data.target_length": "160", "training.num_epochs": "4.0",
        "training.micro_batch_size": "2", "training.recompute": "true", "training.clip_grad": "1.0",
        "optimizer.learning_rate": "3e-05", "optimizer.weight_decay": "0.1", "schedule.warmup_ratio": "0.06",
        "schedule.lr_decay_ratio": "0.1", "checkpoint.every": "100", "checkpoint.keep_every": "100",
        "evaluation.every": "100", "evaluation.batch_size": "2", "training.seed": "42",
        "output.directory": "./checkpoints/glm-large-chinese", "resume": "auto",
    }  # fmt: skip
    assert want.items() <= found.items()
    score = options(PADDLENLP["full"], step=1)
    decoding = {
        "num_beams": "5", "length_penalty": "0.7", "no_repeat_ngram_size": "3", "min_new_tokens": "55",
        "max_new_tokens": "160", "src_length": "608", "batch_size": "2", "beam_length": "answer", "evaluate": None,
        "scores": "paddle", "input": "dureader_qg",
    }  # fmt: skip
    assert decoding.items() <= score.items()
    assert "temperature" not in score


def test_drawn_beams() -> None:
    found = options(PADDLENLP["full"].replace("--select_topk True", "--select_topk False --top_k 50"), step=1)
    assert (found["temperature"], found["top_k"], found["num_beams"]) == ("1.0", "50", "5")


@pytest.mark.parametrize(("flags", "rank"), [("--lora True", "4"), ("--lora True --r 8", "8"), ("--lora", "4")])
def test_lora_of_paddlenlp(flags: str, rank: str) -> None:
    found = options(f"{GENERATION} {flags}")
    assert (found["tuning.method"], found["adapter.rank"], found["adapter.alpha"]) == ("lora", rank, "8")
    assert found["adapter.targets"] == "[query_key_value]"
    assert options(PADDLENLP["instructions"] + " --lora")["adapter.targets"] == "[q_proj, v_proj]"


def test_precision() -> None:
    assert options(PADDLENLP["full"])["training.precision"] == "fp32"
    assert any(note.startswith("--fp16:") for note in translated(PADDLENLP["full"]).notes)
    there = options(PADDLENLP["full"], FOUR)
    assert (there["training.precision"], there["training.opt_level"]) == ("fp16", "O2")
    with pytest.raises(RequestError, match="both --fp16 and --bf16"):
        translated(f"{GENERATION} --bf16")


@pytest.mark.parametrize(
    ("name", "machine", "nproc", "accumulation"),
    [
        ("four-cards", CPU, None, "4"),
        ("four-cards", FOUR, "4", "1"),
        ("four-cards", Machine(accelerators=2, float16=True), "2", "2"),
        ("four-cards", Machine(accelerators=3, float16=True), None, "4"),
        ("tensor-parallel", FOUR, None, "1"),
        ("full", FOUR, None, "1"),
    ],
)
def test_a_step_has_the_rows_of_the_original(name: str, machine: Machine, nproc: str | None, accumulation: str) -> None:
    found = options(PADDLENLP[name], machine)
    assert (found.get("nproc"), found["training.gradient_accumulation_steps"]) == (nproc, accumulation)


def test_under_a_real_launcher() -> None:
    found = options(PADDLENLP["full"], Machine(accelerators=4, float16=True, ranks=4))
    assert (found.get("nproc"), found["training.gradient_accumulation_steps"]) == (None, "1")


@pytest.mark.parametrize(("rank", "verbs"), [("0", ["finetune", "generate"]), ("1", ["finetune"])])
def test_the_first_of_several_processes_answers_alone(
    rank: str, verbs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen: list[tuple[str, bool]] = []

    def native(words: list[str]) -> int:
        seen.append((words[0], "RANK" in os.environ))
        return 0

    monkeypatch.setattr("glmkit.cli.script.main", native)
    assert main(["script", *shlex.split(GENERATION)]) == 0
    assert seen == [(verb, verb == "finetune") for verb in verbs]


def test_ptuning() -> None:
    found = options(PTUNING["train"])
    want = {
        "tuning.method": "prefix", "adapter.length": "128", "adapter.projection": "false",
        "model.quantization_bit": "4", "training.max_steps": "3000", "training.gradient_accumulation_steps": "16",
        "optimizer.learning_rate": "0.02", "optimizer.weight_decay": "0.0", "schedule.lr_decay_ratio": "0",
        "schedule.warmup_ratio": "0.0", "training.recompute": "true", "checkpoint.every": "1000",
        "data.columns.prompt": "content", "data.columns.response": "summary", "data.train": "AdvertiseGen/train.json",
        "data.source_length": "64", "data.target_length": "64",
    }  # fmt: skip
    assert want.items() <= found.items()
    assert "training.num_epochs" not in found
    assert options(PTUNING["train_chat"])["data.target_length"] == "256"
    assert "data.quirks" not in found
    assert options(f"{PTUNING['train']} --ignore_pad_token_for_loss False")["data.quirks"] == "counted_padding"
    assert options(PTUNING["train_chat"])["data.columns.history"] == "history"
    full = options(PTUNING["ds_train_finetune"])
    assert (full["tuning.method"], full["training.gradient_accumulation_steps"]) == ("full", "4")


def test_ptuning_predicts() -> None:
    words = translated(PTUNING["evaluate"]).steps[0].words
    assert words[:2] == ("generate", "THUDM/chatglm-6b")
    found = options(PTUNING["evaluate"])
    want = {
        "adapter": "./output/adgen-chatglm-6b-pt-128-2e-2/checkpoint-3000", "quantize": "int4", "top_p": "0.7",
        "temperature": "0.95", "max_new_tokens": "64", "src_length": "64", "prompt_column": "content",
        "output": "output/adgen-chatglm-6b-pt-128-2e-2/generated_predictions.jsonl",
    }  # fmt: skip
    assert want.items() <= found.items()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("embedding", "--pre_seq_len {0}", ""),
        ("projection", "--pre_seq_len {0} --prefix_projection", ""),
        ("embedding", "--pre_seq_len 7", "--pre_seq_len is 7 and .* has a prefix of {0}; leave it out"),
        (
            "embedding",
            "--pre_seq_len {0} --prefix_projection",
            "--prefix_projection is True and the prefix in .* has none",
        ),
    ],
)
def test_a_prefix_decides_for_itself(name: str, flags: str, message: str) -> None:
    folder = shared_dir("fixtures", f"chatglm-6b-ptuning-v2-{name}")
    length = json.loads((folder / "config.json").read_text())["pre_seq_len"]
    command = (
        f"main.py --do_predict --test_file t.json --output_dir o --predict_with_generate --model_name_or_path m "
        f"--ptuning_checkpoint {folder} {flags.format(length)}"
    )
    if not message:
        assert translated(command).steps
        return
    with pytest.raises(RequestError, match=message.format(length)):
        translated(command)


def test_flags_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "arguments.json"
    words = shlex.split(PTUNING["train"])[3:]
    values: dict[str, object] = {}
    for number, word in enumerate(words):
        if word.startswith("--"):
            value = words[number + 1] if number + 1 < len(words) else "--"
            values[word[2:]] = True if value.startswith("--") else value
    values["max_steps"], values["learning_rate"] = 3000, 2e-2
    file.write_text(json.dumps(values))
    assert translated(f"main.py {file}").steps == translated(PTUNING["train"]).steps
    file.write_text('{"do_trian": true}')
    with pytest.raises(RequestError, match=r"do_trian is no flag of ptuning/main.py; did you mean do_train\?"):
        translated(f"main.py {file}")


def test_lora_of_chatglm_tuning() -> None:
    found = options(CHATGLM_TUNING["finetune"])
    want = {
        "tuning.method": "lora", "adapter.rank": "8", "adapter.alpha": "32", "adapter.dropout": "0.1",
        "model.quantization_bit": "8", "training.max_steps": "52000", "checkpoint.keep_last": "2",
        "training.micro_batch_size": "6", "output.directory": "output",
    }  # fmt: skip
    assert want.items() <= found.items()
    assert "resume" not in found
    assert "data.template" not in found  # rows of ids have their wording
    found = options(CHATGLM_TUNING["finetune"].replace("data/alpaca ", "data/alpaca_data.json "))
    assert found["data.template"] == "chatglm_tuning"  # that of infer.py


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("finetune_generatoin.py", r"did you mean finetune_generation.py\?"),
        ("finetune_generation.py --output_dir o --do_train --lable_smoothing 0.1", r"did you mean --label_smoothing\?"),
        ("finetune_generation.py --do_train", "needs --output_dir"),
        ("finetune_generation.py --output_dir o", "nothing to do; add --do_train"),
        ("finetune_generation.py --output_dir o --do_train --lora maybe", "--lora is 'maybe'; give True or False"),
        ("finetune_generation.py --output_dir o --do_train --src_length long", "--src_length is 'long'; give a whole"),
        ("finetune_generation.py --output_dir o --do_train --src_length --lora", "--src_length needs a value"),
        ("finetune_generation.py --output_dir o --do_train --r 8", "--r is the rank of LoRA; add --lora True"),
        ("finetune_generation.py --output_dir o --do_train --no_block_position", "no counterpart"),
        ("finetune_generation.py --output_dir o --do_train --lr_scheduler_type polynomial", "known here are linear"),
        ("main.py --do_train --output_dir o --model_name_or_path m --adafactor True", "no counterpart"),
        ("main.py --do_train --output_dir o --model_name_or_path m --quantization_bit 4", "add --pre_seq_len"),
        ("main.py --do_predict --output_dir o --model_name_or_path m", "--do_predict needs --test_file"),
        ("finetune.py data/ THUDM/chatglm3-6b configs/lora.yaml", "glm finetune lora --model MODEL_DIR"),
        ("web_demo.py --model_name_or_path m", "web_demo.py is the name of 2 scripts: ptuning/web_demo.py"),
        ("bash train.sh", "train.sh is a shell script; write `glm script`"),
        ("torchrun --nproc_per_node x main.py", "give a number of processes"),
        ("python", "no script was named"),
        ("infer_generation.py", "needs --model_dir"),
    ],
)
def test_refusals(command: str, message: str) -> None:
    with pytest.raises(GLMKitError, match=message):
        translated(command)


def test_an_earlier_run_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out", "out.old-1"):
        (tmp_path / name / "checkpoints" / "step-00000002").mkdir(parents=True)
    command = f"{PTUNING['train'].partition('--output_dir')[0]} --output_dir out --overwrite_output_dir --pre_seq_len 8"
    words = shlex.split(command.partition("=0 ")[2].replace("THUDM/chatglm-6b", "./absent"))
    assert main(["script", *words, "--dry-run"]) == 0
    assert "out holds a run, which would be moved to out.old-2" in capsys.readouterr().err
    assert main(["script", *words]) == 2  # there is no such model
    assert "the earlier run in out was moved to out.old-2" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out.old-1", "out.old-2"]


def test_scripts_of_one_name() -> None:
    def title(command: str) -> str:
        return read_command(shlex.split(command)).script.title

    assert title("web_demo.py") == "ChatGLM-6B/web_demo.py"
    assert title("ptuning/web_demo.py --model_name_or_path m") == "ptuning/web_demo.py"
    assert title("ChatGLM-6B/web_demo.py --model_name_or_path m") == "ChatGLM-6B/web_demo.py"
    assert title("web_demo.py --model_name_or_path m --pre_seq_len 8") == "ptuning/web_demo.py"


def test_what_cannot_act_is_said() -> None:
    notes = translated(PADDLENLP["tensor-parallel"]).notes
    assert any(note.startswith("--tensor_parallel_degree 8: models are not cut") for note in notes)
    notes = translated(PTUNING["ds_train_finetune"]).notes
    assert any(note.startswith("--deepspeed deepspeed.json: the file is not read") for note in notes)
    assert any(note.startswith("--master_port 50003: no effect here") for note in notes)
    notes = translated(CHATGLM_TUNING["tokenize"]).notes
    assert any("the original takes every word for true" in note for note in notes)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.title)
def test_tables(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """No flag twice, none without a counterpart and without a word on it; `--help` lists all."""
    names = [item.name for item in script.flags]
    assert len(names) == len(set(names))
    assert [item.name for item in script.flags if not (item.became or item.about)] == []
    assert main(["script", script.title, "--help"]) == 0
    out = capsys.readouterr().out
    assert [name for name in names if f"--{name} " not in out] == []


def test_every_key_of_a_recipe_exists() -> None:
    known = {leaf.name for leaf in FINETUNING.leaves()}
    for script in SCRIPTS:
        named = [option for item in script.flags for option in item.options("finetune")]
        named += [name.split(" ")[1] for name in script.facts if name.split(" ")[0] in ("finetune", "lora")]
        keys = {name for name in named if "." in name and not name.startswith("data.columns")}
        assert sorted(keys - known) == [], script.title


@pytest.mark.parametrize("name", [name for name in ALL if "finetune" in name or "train" in name or "lora" in name])
def test_settings_are_taken(name: str) -> None:
    """A recipe takes all settings that a command becomes, whichever of them it has by itself."""
    step = translated(ALL[name]).steps[0]
    if step.words[0] != "finetune":
        return
    overrides = {key: value for key, value in options(ALL[name]).items() if "." in key}
    config = FINETUNING.read(step.words[1], overrides)
    assert config.output.directory == overrides["output.directory"]


# --- the page ---------------------------------------------------------------------------------------------------------

PAGES = [ROOT / "docs" / name for name in ("from_old_scripts.md", "from_old_scripts.zh.md")]


def test_the_page_has_the_tables() -> None:
    """`python scripts/old_scripts_tables.py` writes them."""
    text = PAGES[0].read_text()
    assert text.split("<!-- tables -->")[1].split("<!-- end of tables -->")[0].strip() == all_tables()


def page_commands(page: Path) -> list[str]:
    """The commands of a page that call `glm script`."""
    return re.findall(r"^((?:[A-Z_]+=\S+ )?glm script .*)$", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_page_are_read(page: Path) -> None:
    commands = [command.replace("glm script ", "", 1) for command in page_commands(page)]
    assert len(commands) > 12
    for command in commands:
        words = [word for word in shlex.split(command) if word != "--dry-run"]
        if words[-1] != "--help":
            assert translate(read_command(words), CPU).steps


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_documents_is_on_the_page(page: Path) -> None:
    """Word for word, but for `python`."""
    found = {command.replace("glm script ", "", 1) for command in page_commands(page)}
    assert [name for name, command in ALL.items() if re.sub(r"\bpython3? ", "", command, count=1) not in found] == []


def test_both_pages_have_the_same_commands() -> None:
    """The Chinese one has no list of launchers at its head."""
    fences = [re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES]
    assert fences[0][1:] == fences[1]


@pytest.mark.parametrize("command", ALL.values(), ids=ALL)
def test_native_commands_are_parsed(command: str) -> None:
    """The verbs take every word of what a command becomes."""
    for machine in (CPU, FOUR):
        for step in translated(command, machine).steps:
            if step.action is None:
                verb = VERBS[step.words[0]]
                parser = OneLineParser(prog=step.words[0])
                importlib.import_module(verb.module).add_arguments(parser)
                words = [word for word in step.words[1:] if word != "--threads"]
                parser.parse_args(words)
