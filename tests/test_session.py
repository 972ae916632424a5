"""Text in, text out: a saved model directory with a real tokenizer, through the API and the command line."""

import io
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import glmkit
from glmkit.checkpoint.native import write_model, write_tensors
from glmkit.cli.main import main
from glmkit.config import GenerationSettings
from glmkit.devices import choose_device
from glmkit.errors import CheckpointError, RequestError, TokenizerError
from glmkit.generate.sampling import Sampling, next_tokens
from glmkit.model import GLM, init_weights
from glmkit.session import LM
from glmkit.tokenizer.training import train_tokenizer
from support.fed import Fed
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


@torch.inference_mode()
def whole_passes(lm: LM, part_a: list[int], limit: int) -> list[int]:
    """The greedy span of the only blank, without any cache: the model reads everything again for every token."""
    special = lm.special
    never = {special.pad, special.sop, special.cls, special.sep, special.dblock, *special.mask_ids()}
    banned = [index for index in never if index is not None] + [*range(lm.tokenizer.vocab_size, lm.config.vocab_size)]
    answer: list[int] = []
    while len(answer) < limit:
        logits_V = lm.model(torch.tensor([[*part_a, special.sop, *answer]]))[0, -1]
        logits_V[banned] = -torch.inf
        token = int(logits_V.argmax())
        if token in (special.eop, special.eos):
            break
        answer.append(token)
    return answer


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
    assert whole_passes(lm, row, 4) == inserted.ids[1]


def test_inserted_answers_never_meet_the_same_noise(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []

    def record(logits: torch.Tensor, sampling: Sampling, positions: list[int]) -> torch.Tensor:
        places.extend(positions)
        return next_tokens(logits, sampling, positions)

    monkeypatch.setattr("glmkit.generate.jobs.decoding.next_tokens", record)
    lm.fill(TEXT, max_tokens=3, temperature=2.0, order="inserted")
    assert len(places) > 3
    assert len(set(places)) == len(places)


def test_padding_rows_of_the_vocabulary_are_never_produced(lm: LM) -> None:
    filled = lm.fill("a [MASK] b", max_tokens=40, temperature=8.0)
    assert filled.ids[0]
    assert max(filled.ids[0]) < lm.tokenizer.vocab_size


def test_generate_continues_after_a_generation_mask(lm: LM) -> None:
    special, tokenizer = lm.special, lm.tokenizer
    row = [special.cls, *tokenizer.encode("The quick"), special.gmask]
    assert lm.generate("The quick", max_new_tokens=9) == tokenizer.decode(whole_passes(lm, row, 9))


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
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "model.safetensors is a git-lfs pointer",
        ),
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


@pytest.mark.parametrize("add_cls", [None, True, False])
@pytest.mark.parametrize("running", [None, False, True])
@pytest.mark.parametrize("block", [None, True, False])
def test_filling_does_as_training_did(
    lm: LM, monkeypatch: pytest.MonkeyPatch, add_cls: bool | None, running: bool | None, block: bool | None
) -> None:
    special, encode = lm.special, lm.tokenizer.encode
    settings = GenerationSettings(  # None: an older directory
        generation_mask_id=special.smask, add_cls=add_cls, running_positions=running, block_positions=block
    )
    ours = LM(replace(lm.parts, generation=settings))
    opening = [special.cls] if add_cls is not False else []
    fed = Fed(monkeypatch)

    def check(part_a: list[int], mask: int, *, counts: bool) -> None:
        assert fed.row[: len(part_a) + 1] == [*part_a, special.sop]
        steps = range(1, len(fed.row) - len(part_a) + 1)
        assert len(steps) >= 3
        places = [(mask + (step if counts else 0), 1 if block is False else step) for step in steps]
        assert fed.row_places == [*((place, 0) for place in range(len(part_a))), *places]
        fed.ids.clear(), fed.places.clear()

    ours.generate("The quick", max_new_tokens=4)
    part_a = [*opening, *encode("The quick"), special.smask]
    check(part_a, len(part_a) - 1, counts=bool(running))
    ours.fill("The [MASK] fox", max_tokens=4)
    part_a = [*opening, *encode("The [MASK] fox", specials=True), special.eos]
    check(part_a, part_a.index(special.mask), counts=False)  # blanks inside a text never have running positions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generation_mask_id": "7"}, "generation_mask_id is '7'; it must be an id from 0 to 319"),
        ({"generation_mask_id": True}, "generation_mask_id is True; it must be an id"),
        ({"generation_mask_id": None}, "generation_mask_id is None; it must be an id"),
        ({"generation_mask_id": -1}, "generation_mask_id is -1; it must be an id"),
        ({"generation_mask_id": 320}, "generation_mask_id is 320; it must be an id"),
        ({"generation_mask_id": 300}, "generation_mask_id is 300, no mask id of this model; these are "),
        ({"add_cls": "no"}, "add_cls is 'no'; it must be true or false"),
        ({"running_positions": 1}, "running_positions is 1; it must be true or false"),
        ({"block_positions": None}, "block_positions is None; it must be true or false"),
        ({"stop_ids": 5}, "stop_ids is 5; it must be a list of ids"),
        ({"pad_id": "x"}, "pad_id is 'x'; it must be an id"),
        ([], "holds list, not an object"),
    ],
)
def test_broken_generation_settings_are_named(directory: Path, tmp_path: Path, values: Any, message: str) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as error:
        glmkit.load(tmp_path, device="cpu")
    assert message in str(error.value)
    assert str(tmp_path / "generation.json") in str(error.value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("text", {"text": None}),
        ("text", {"text": 3}),
        ("text", {"text": b"a [MASK]"}),
        ("max_tokens", {"max_tokens": "3"}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("max_tokens", {"max_tokens": True}),
        ("temperature", {"temperature": "1"}),
        ("temperature", {"temperature": None}),
        ("top_k", {"top_k": 1.5}),
        ("top_p", {"top_p": "0.5"}),
        ("seed", {"seed": "x"}),
    ],
    ids=str,
)
def test_wrong_types_are_named(lm: LM, name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=rf"^{name} is .*; give "):
        lm.fill(**{"text": "a [MASK]", **arguments})
    if name != "max_tokens":
        with pytest.raises(RequestError, match=rf"^{name} is .*; give "):
            lm.generate(**{"text": "a", **arguments})


@pytest.mark.parametrize("texts", ["a [MASK]", b"a [MASK]", None, 3])
def test_texts_are_a_list(lm: LM, texts: Any) -> None:
    with pytest.raises(RequestError, match="^texts is .*; give a list of texts"):
        lm.fill_many(texts)


def test_numbers_of_other_libraries_are_numbers(lm: LM) -> None:
    options = {"max_tokens": np.int64(4), "top_k": np.int32(5), "seed": np.int64(2**62), "temperature": np.float32(2)}
    plain = {"max_tokens": 4, "top_k": 5, "seed": 2**62, "temperature": 2}
    assert lm.fill(TEXT, **options) == lm.fill(TEXT, **plain)
    with pytest.raises(RequestError, match="max_new_tokens is '3'"):
        lm.generate("a", max_new_tokens="3")  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["shared", "inserted"])
def test_no_text_gives_no_answer(lm: LM, order: str) -> None:
    assert lm.fill_many([], order=order) == []


@pytest.mark.parametrize("max_tokens", [10**8, 10**13])
def test_more_tokens_than_memory_is_a_mistake(lm: LM, max_tokens: int) -> None:
    message = r"1 x \d+ tokens do not fit this engine's cache of \d+; shorten the prompt, ask for fewer tokens"
    with pytest.raises(RequestError, match=message):
        lm.fill("a [MASK]", max_tokens=max_tokens)
    with pytest.raises(RequestError, match=message):
        lm.generate("a", max_new_tokens=max_tokens)


@pytest.mark.parametrize("value", [2**63, 10**25, -(2**63) - 1, -(10**5000)], ids=lambda value: str(value % 97))
def test_a_whole_number_beyond_64_bits_is_a_mistake(lm: LM, value: int) -> None:
    for name in ("seed", "max_new_tokens", "top_k", "no_repeat_ngram_size", "stop_ids"):
        given = [value] if name == "stop_ids" else value
        with pytest.raises(RequestError, match=rf"{name} is .*; give ") as caught:
            lm.generate("a", **{name: given})  # type: ignore[arg-type]
        assert caught.value.param == name
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["meta", "warp", "cuda:x", "cuda:-1", "CPU", "", None, 0])
def test_other_devices_are_unknown(name: Any) -> None:
    with pytest.raises(RequestError, match=r"use auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    devices = [choose_device(name) for name in ("auto", "cpu", "cuda", "cuda:1")]
    assert devices == [torch.device(name) for name in ("cuda", "cpu", "cuda", "cuda:1")]
    with pytest.raises(RequestError, match=r"device is 'cuda:2', and PyTorch sees 2 such devices"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(RequestError, match="PyTorch sees no accelerator; use cpu"):
        choose_device("cuda:0")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_weights_get_the_rights_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o666 & ~umask


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
    dashed = lm.fill("-[MASK]", max_tokens=5).text + "\n"
    assert run("fill", str(directory), "-[MASK]", *options).out == dashed
    assert run("fill", str(directory), *options, "-[MASK]").out == dashed
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert run("fill", str(directory), "--file", str(file), *options).out == expected.text + "\n"
    file.write_text(TEXT, encoding="utf-8-sig")  # as editors on Windows write it
    assert run("fill", str(directory), "--file", str(file), *options).out == expected.text + "\n"
    file.write_bytes("红楼梦[MASK]第一回甄士隐梦幻识通灵".encode("gb18030"))
    refused = run("fill", str(directory), "--file", str(file), *options).err
    assert refused.endswith("is not UTF-8 (byte 0); convert it first, for example: iconv -f gb18030 -t UTF-8\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode()), encoding="utf-8"))
    answer = json.loads(run("fill", str(directory), "--json", *options).out)
    fields = {"text": expected.text, "blanks": expected.blanks, "ids": expected.ids, "finish": expected.finish}
    assert answer == fields


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
        (("a [MASK]", "--device", "warp"), "device is 'warp'; use auto, cpu, cuda or cuda:N"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run, directory: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("fill", str(directory), *arguments)
    assert result.status == 2
    assert result.out == ""
    assert message in result.err
    assert result.err.count("\n") == 1
