"""Text in, text out: a saved model directory with a real tokenizer, through the API and the command line."""

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmkit
from glmkit.checkpoint.native import write_model
from glmkit.cli.main import main
from glmkit.errors import CheckpointError, RequestError, TokenizerError
from glmkit.generate.filling import fill_rows
from glmkit.model import GLM, init_weights
from glmkit.session import LM
from glmkit.tokenizer.training import train_tokenizer
from support.tiny import tiny_config

TEXT = "凯旋门是为纪念[MASK]而建的，位于[gMASK]。"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["The quick brown fox.\n", "凯旋门是为纪念胜利而建的，位于巴黎。"] * 20, vocab_size=290)
    config = tiny_config(vocab_size=320, special=tokenizer.special, init_std=0.3)
    model = GLM(config)
    init_weights(model, config, 1)
    write_model(folder, config, dict(model.named_parameters()))
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def lm(directory: Path) -> LM:
    return glmkit.load(directory, device="cpu")


def test_fill_puts_each_answer_in_its_place(lm: LM) -> None:
    filled = lm.fill(TEXT, max_tokens=6)
    first, second = filled.blanks
    assert filled.text == f"凯旋门是为纪念{first}而建的，位于{second}。"
    assert [lm.tokenizer.decode(ids) for ids in filled.ids] == filled.blanks


def test_fill_many_equals_fill(lm: LM) -> None:
    texts = [TEXT, "The [MASK] fox.", "[sMASK] a [MASK] b [MASK]\n    c"]
    assert lm.fill_many(texts, max_tokens=5) == [lm.fill(text, max_tokens=5) for text in texts]


def test_inserted_answers_are_read_again(lm: LM) -> None:
    """GLM-130B's order: the second blank is asked with the first answer standing in the text."""
    shared = lm.fill(TEXT, max_tokens=4)
    inserted = lm.fill(TEXT, max_tokens=4, order="inserted")
    assert inserted.blanks[0] == shared.blanks[0]
    special, tokenizer = lm.special, lm.tokenizer
    row = [special.cls, *tokenizer.encode(TEXT, specials=True), special.eos]
    place = row.index(special.mask)
    row[place : place + 1] = inserted.ids[0]
    alone = fill_rows(lm.model, [row], special, max_tokens=4, forbidden=range(tokenizer.vocab_size, 320))
    assert alone[0] == [inserted.ids[1]]


def test_padding_rows_of_the_vocabulary_are_never_produced(lm: LM) -> None:
    filled = lm.fill("a [MASK] b", max_tokens=40, temperature=8.0)
    assert filled.ids[0]
    assert max(filled.ids[0]) < lm.tokenizer.vocab_size


def test_generate_continues_after_a_generation_mask(lm: LM) -> None:
    special, tokenizer = lm.special, lm.tokenizer
    row = [special.cls, *tokenizer.encode("The quick"), special.gmask]
    spans = fill_rows(lm.model, [row], special, max_tokens=9, forbidden=range(tokenizer.vocab_size, 320))
    assert lm.generate("The quick", max_new_tokens=9) == tokenizer.decode(spans[0][0])


def test_a_model_without_tokenizer_loads_and_says_so_when_asked_for_text(directory: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    bare = glmkit.load(tmp_path, device="cpu")
    assert bare.model(torch.tensor([[2, 30, 31]])).shape == (1, 3, 320)
    with pytest.raises(TokenizerError, match="tokenizer.json"):
        bare.fill(TEXT)
    assert glmkit.load(tmp_path, tokenizer=directory, device="cpu").fill(TEXT, max_tokens=3).blanks


def test_loading_is_exact_and_does_not_change_the_file(directory: Path) -> None:
    first, second = glmkit.load(directory, device="cpu"), glmkit.load(directory, device="cpu", dtype="bfloat16")
    for (name, a), b in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "model.norm.bias"}, "model.norm.bias is missing"),
        ({"add": "model.norm.bia"}, "model.norm.bia is not part of this model; closest: model.norm.bias"),
        ({"reshape": "model.norm.bias"}, r"model.norm.bias has shape \(31,\), the config asks for \(32,\)"),
    ],
)
def test_weights_are_strict(directory: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    state = load_file(directory / "model.safetensors")
    if "drop" in change:
        del state[change["drop"]]
    elif "add" in change:
        state[change["add"]] = torch.zeros(1)
    else:
        state[change["reshape"]] = state[change["reshape"]][:-1].contiguous()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        glmkit.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json is not valid JSON"),
        ("config.json", b"{}", "was not written by glmkit"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "model.safetensors is damaged"),
    ],
)
def test_damaged_files_are_named(directory: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        glmkit.load(tmp_path)


def test_mistakes_in_requests(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no blank"):
        lm.fill("nothing is missing here")
    with pytest.raises(RequestError, match="order is 'random'"):
        lm.fill(TEXT, order="random")
    with pytest.raises(CheckpointError, match="not a directory"):
        glmkit.load(tmp_path / "nothing")


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> Result:
        status = main(list(arguments))
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


def test_the_command_reads_argument_file_and_standard_input(
    run, lm: LM, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lm.fill(TEXT, max_tokens=5)
    options = ("--max_tokens", "5", "--device", "cpu")
    assert run("fill", str(directory), TEXT, *options).out == expected.text + "\n"
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert run("fill", str(directory), "--file", str(file), *options).out == expected.text + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode()), encoding="utf-8"))
    answer = json.loads(run("fill", str(directory), "--json", *options).out)
    assert answer == {"text": expected.text, "blanks": expected.blanks, "ids": expected.ids}


def test_generate_prints_the_text_and_its_continuation(run, lm: LM, directory: Path) -> None:
    out = run("generate", str(directory), "The quick", "--max_new_tokens", "7", "--device", "cpu").out
    assert out == "The quick" + lm.generate("The quick", max_new_tokens=7) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no blank here",), "no blank"),
        (("a [MASK]", "--file", "x"), "leave one out"),
        (("a [MASK]", "--temperature", "-1"), "temperature is -1"),
        (("--file", "/nonexistent/file"), "No such file"),
        (("a [MASK]", "--device", "warp"), "device 'warp' is unknown"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run, directory: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("fill", str(directory), *arguments)
    assert result.status == 2
    assert result.out == ""
    assert message in result.err
    assert result.err.count("\n") == 1
