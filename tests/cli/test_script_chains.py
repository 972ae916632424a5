"""The chains of the original documents, in their order and with their paths: train, predict, export, on small models.

Each command is that of the document; only `python`, the number of steps or epochs and with it the name of a checkpoint
differ.
"""

import io
import json
import re
import shlex
import shutil
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from glmkit.cli.main import main
from glmkit.errors import MismatchWarning
from support.original_models import small_release
from support.seed_commands import CHATGLM_TUNING, DEMOS, PADDLENLP, PTUNING
from support.server import PATIENCE, ProcessServer, process_server
from support.shared import ROOT

ASSETS = ROOT / "tests" / "assets" / "finetune"
FEWER = {
    "--num_train_epochs 4": "--num_train_epochs 1", "--max_steps 3000": "--max_steps 2",
    "--max_steps 5000": "--max_steps 2", "--max_steps 52000": "--max_steps 2", "checkpoint-3000": "checkpoint-2",
    "checkpoint-5000": "checkpoint-2",
}  # fmt: skip


def shortened(command: str) -> str:
    for long, short in FEWER.items():
        command = command.replace(long, short)
    return command


def run(command: str) -> None:
    assert main(["script", *shlex.split(shortened(command))]) == 0, command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's directory: the sets of the documents under their own paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLMKIT_DATA", str(ASSETS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the commands set it; put back afterwards
    for name in ("AdvertiseGen", "chat"):
        shutil.copytree(ASSETS / name, tmp_path / name)
    (tmp_path / "data").mkdir()
    shutil.copy(ASSETS / "alpaca_data.json", tmp_path / "data" / "alpaca_data.json")
    return tmp_path


@pytest.fixture
def glm(folder: Path) -> Path:
    return small_release(folder / "THUDM" / "glm-large-chinese", "glm-large-chinese")


@pytest.fixture
def chatglm(folder: Path) -> Path:
    return small_release(folder / "THUDM" / "chatglm-6b", "chatglm-6b")


def predictions(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_script_writes_again_is_moved_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = small_release(folder / "THUDM" / "glm-large-chinese", "glm-large-chinese")
    shutil.copytree(base, folder / "checkpoints" / "glm-large-chinese")
    for _ in range(2):
        run(PADDLENLP["export"])
    assert (
        "the earlier model in checkpoints/infer/glm was moved to checkpoints/infer/glm.old-1" in capsys.readouterr().err
    )
    assert main(["script", "--dry-run", *shlex.split(PADDLENLP["export"])]) == 0
    assert "checkpoints/infer/glm holds a model, which would be moved to" in capsys.readouterr().err
    onto_itself = "export_generation_model.py --model_name_or_path THUDM/glm-large-chinese --output_path THUDM"
    (folder / "THUDM" / "config.json").write_text("{}")
    assert main(["script", *shlex.split(onto_itself)]) == 2
    assert base.is_dir()


@pytest.mark.exhaustive
def test_glm_full(glm: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(PADDLENLP["full"])
    capsys.readouterr()
    run(PADDLENLP["full"])  # goes on with the run that it finds, which is finished, and answers again
    assert "holds a run, which goes on; --overwrite_output_dir moves it aside" in capsys.readouterr().err
    run_directory = folder / "checkpoints" / "glm-large-chinese"
    assert len(predictions(run_directory / "eval_predictions.jsonl")) == 2
    run(PADDLENLP["predict"])
    run(PADDLENLP["export"])
    capsys.readouterr()
    run(PADDLENLP["infer"])
    exported = capsys.readouterr().out
    assert exported.count("在已知答案的前提下，问题：") == 2
    run(PADDLENLP["predict"])
    assert capsys.readouterr().out.splitlines()[-4:] == exported.splitlines()[-4:]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["lora-r", "four-cards"])
def test_glm_lora(name: str, glm: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(PADDLENLP[name] + (" --lora True" if name == "four-cards" else ""))
    run(PADDLENLP["predict-lora"])
    adapted = capsys.readouterr().out.splitlines()[-4:]
    run(PADDLENLP["export-lora"])
    capsys.readouterr()
    run(PADDLENLP["infer"])
    assert capsys.readouterr().out.splitlines()[-4:] == adapted
    run(PADDLENLP["export"].replace("infer/glm", "infer/again"))  # the run of an adapter knows its base
    assert (folder / "checkpoints" / "infer" / "again" / "model.safetensors").is_file()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["tensor-parallel", "instructions"])
def test_glm_on_several_cards(name: str, glm: Path, folder: Path) -> None:
    run(PADDLENLP[name])
    assert (folder / "checkpoints" / "glm-large-chinese" / "model").is_dir()


def test_glm_from_shards(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_release(folder / "checkpoints" / "glm-large-chinese" / "checkpoint-100", "glm-large-chinese", ranks=2)
    run(PADDLENLP["predict-shards"])
    assert capsys.readouterr().out.count("在已知答案的前提下，问题：") == 2
    merged = folder / "checkpoints" / "glm-merged"
    assert {"config.json", "model.safetensors", "cog-pretrain.model"} <= {file.name for file in merged.iterdir()}


@pytest.mark.exhaustive
def test_ptuning(chatglm: Path, folder: Path) -> None:
    run(PTUNING["train"])
    with warnings.catch_warnings():  # the base is quantised as it was in training, its word table too
        warnings.simplefilter("error", MismatchWarning)
        run(PTUNING["evaluate"])
    rows = predictions(folder / "output" / "adgen-chatglm-6b-pt-128-2e-2" / "generated_predictions.jsonl")
    assert len(rows) == 2
    assert all(row["labels"] for row in rows)
    pytest.importorskip("gradio", reason="an extra")
    page_and_answer(PTUNING["web_demo"])


@pytest.mark.exhaustive
def test_ptuning_that_trains_on_padding(chatglm: Path, folder: Path) -> None:
    """Rows of 64 + 64 tokens, of which all but the prompt count; prediction knows columns and quirk from the run."""
    command = PTUNING["train"].replace("--gradient_accumulation_steps 16", "--gradient_accumulation_steps 1")
    run(f"{command} --ignore_pad_token_for_loss False")
    output = folder / "output" / "adgen-chatglm-6b-pt-128-2e-2"
    (line, *_) = predictions(output / "metrics.jsonl")
    assert line["tokens"] == line["rows"] * (64 + 64 - 1)
    prompts = line["tokens"] - line["targets"]
    assert 0 < prompts < line["rows"] * 64
    words = f"generate {output} --input AdvertiseGen/dev.json --output o.jsonl --task predict --max_rows 1 --quiet"
    assert main([*shlex.split(words), "--max_new_tokens", "4"]) == 0
    record = json.loads((output / "model" / "glmkit_adapter.json").read_text())["taught"]
    assert record["quirks"] == ["counted_padding"]
    assert record["columns"] == {"prompt": "content", "response": "summary"}


@pytest.mark.exhaustive
def test_ptuning_of_conversations(chatglm: Path, folder: Path) -> None:
    run(PTUNING["train_chat"])


@pytest.mark.exhaustive
def test_full_tuning_of_chatglm(chatglm: Path, folder: Path) -> None:
    run(PTUNING["ds_train_finetune"])
    run(PTUNING["evaluate_finetune"])
    assert len(predictions(folder / "output" / "adgen-chatglm-6b-ft-1e-4" / "generated_predictions.jsonl")) == 2


@pytest.mark.exhaustive
def test_chatglm_tuning(chatglm: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets", reason="an extra")
    for name in ("cover", "tokenize", "finetune"):
        run(CHATGLM_TUNING[name])
    assert main(["script", *shlex.split(CHATGLM_TUNING["finetune"])]) == 2
    assert "output holds a run already; add --overwrite_output_dir, which moves it" in capsys.readouterr().err
    run("infer.py")
    assert len(predictions(folder / "answers.jsonl")) == 8


@pytest.mark.exhaustive
def test_cli_demo(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small_release(folder / "THUDM" / "chatglm-6b", "chatglm-6b", max_positions=48)  # its answer is as long as it can be
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("你好\nclear\nstop\n".encode())))
    run(DEMOS["cli"])
    assert (
        "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序" in capsys.readouterr().err
    )


def served(command: str) -> AbstractContextManager[ProcessServer]:
    """The server of a demo, as a process of its own on a free port of this machine."""
    words = shlex.split(command)
    return process_server(
        ["-m", "glmkit", "script", *words, "--host", "127.0.0.1", "--port", "0"], ready="glm serve: http"
    )


def page_and_answer(command: str) -> None:
    """The page of a demo is there, and the model behind it answers."""
    with served(shortened(command)) as server:
        page = httpx.get(f"{server.url}/", timeout=PATIENCE, follow_redirects=True)
        assert (page.status_code, "gradio" in page.text) == (200, True)
        body = {"prompt": "你好", "history": [], "max_length": 24}
        assert httpx.post(f"{server.url}/", json=body, timeout=PATIENCE).json()["status"] == 200


@pytest.mark.exhaustive
def test_api(chatglm: Path) -> None:
    with served(DEMOS["api"]) as server:
        assert 'clients post {"prompt": ..., "history": []} to the address that is printed' in server.text
        body = {"prompt": "你好", "history": [["你", "好"]], "max_length": 24}
        said = httpx.post(f"{server.url}/", json=body, timeout=PATIENCE).json()
    assert (said["status"], said["history"]) == (200, [["你", "好"], ["你好", said["response"]]])


@pytest.mark.exhaustive
def test_web_demo(chatglm: Path) -> None:
    pytest.importorskip("gradio", reason="an extra")
    page_and_answer(DEMOS["web"])


NATIVE = re.findall(
    r"<!-- not run: tests/cli/test_script_chains.py runs it -->\n```sh\n(.*?)```",
    (ROOT / "docs" / "from_old_scripts.md").read_text(),
    re.DOTALL,
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("commands", NATIVE, ids=lambda commands: commands.split()[2])
def test_the_same_natively(commands: str, glm: Path, chatglm: Path, folder: Path) -> None:
    if "checkpoint-100" in commands:
        small_release(folder / "checkpoints" / "glm-large-chinese" / "checkpoint-100", "glm-large-chinese", ranks=2)
    for command in commands.splitlines():
        words = shlex.split(command)
        shorter = {
            "finetune": ["--max_steps", "1", "--evaluation.report_rows", "0"],
            "generate": ["--max_new_tokens", "56"],
        }.get(words[1], [])
        assert main([*words[1:], *shorter]) == 0, command


def test_there_are_native_commands_for_every_chain() -> None:
    assert len(NATIVE) == 4
