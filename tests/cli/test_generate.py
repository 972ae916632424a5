"""`glm generate` and `glm fill`: every option of decoding, several answers, streams, JSON."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import glmkit
from glmkit.checkpoint.native import write_model
from glmkit.cli.generation_options import add_generation_arguments, generation_options
from glmkit.cli.main import main
from glmkit.cli.parser import OneLineParser
from glmkit.generate.params import OPTIONS, Face, GenerationParams, options_of
from glmkit.session import LM
from support.served_models import small_base

TEXT = "The quick"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm, folder = small_base(), tmp_path_factory.mktemp("base")
    write_model(folder, lm.config, dict(lm.model.named_parameters()))
    lm.tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def lm(directory: Path) -> LM:
    return glmkit.load(directory, device="cpu")


@pytest.fixture
def run(directory: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(verb: str, *arguments: str) -> tuple[int, str, str]:
        status = main([verb, str(directory), *arguments, "--device", "cpu"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_options_reach_the_model(run: Run, lm: LM) -> None:
    whole = lm.generate(TEXT, max_new_tokens=12, temperature=0.9, min_p=0.05, repetition_penalty=1.2, seed=3)
    options = ["--max_new_tokens", "12", "--temperature", "0.9", "--min_p", "0.05", "--repetition_penalty", "1.2"]
    options += ["--seed", "3"]
    cut = "glm generate: the continuation is cut at the longest length (--max_new_tokens)\n"
    assert run("generate", TEXT, *options) == (0, f"{TEXT}{whole}\n", cut)
    assert run("generate", TEXT, *options, "--stream") == (0, f"{TEXT}{whole}\n", cut)
    stop = whole[4:6]
    before = whole[: whole.index(stop)]
    _, out, _ = run("generate", TEXT, *options, "--stop", "never seen", "--stop", stop, "--json")
    answer = json.loads(out)
    assert (answer["text"], answer["continuation"], answer["finish"]) == (TEXT, before, "stop")
    ids = lm.tokenizer.encode(whole)
    _, out, _ = run("generate", TEXT, *options, *(f"--forbidden={index}" for index in ids))
    assert out == TEXT + lm.generate(TEXT, max_new_tokens=12, temperature=0.9, min_p=0.05, repetition_penalty=1.2,
                                     seed=3, forbidden=ids) + "\n"  # fmt: skip


def test_several_answers(run: Run, lm: LM) -> None:
    (answers,) = lm.answers([TEXT], max_new_tokens=6, min_new_tokens=2, temperature=1.0, n=3, logprobs=1)
    options = ["--max_new_tokens", "6", "--min_new_tokens", "2", "--temperature", "1", "--n", "3"]
    _, out, err = run("generate", TEXT, *options)
    assert out == "".join(f"[{number}]\n{TEXT}{answer.text}\n" for number, answer in enumerate(answers, 1))
    cut = sum(answer.finish == "length" for answer in answers)
    assert err == f"glm generate: {cut} of 3 continuations are cut at the longest length (--max_new_tokens)\n"
    found = json.loads(run("generate", TEXT, *options, "--logprobs", "1", "--json")[1])
    assert [one["continuation"] for one in found["answers"]] == [answer.text for answer in answers]
    assert [one["tokens"] for one in found["answers"]] == [len(answer.ids) for answer in answers]
    for one, answer in zip(found["answers"], answers, strict=True):
        assert [item["id"] for item in one["logprobs"]] == answer.ids
        assert [item["token"] for item in one["logprobs"]] == [lm.tokenizer.id_to_token(index) for index in answer.ids]
        assert all(len(item["top"]) == 1 for item in one["logprobs"])


@pytest.mark.parametrize("name", ["--n", "--num_return_sequences"])
def test_beams(run: Run, lm: LM, name: str) -> None:
    options = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.7, "early_stopping": True}
    (answers,) = lm.answers([TEXT], max_new_tokens=6, **options)  # type: ignore[arg-type]
    given = ["--num_beams", "4", name, "2", "--length_penalty", "0.7", "--early_stopping", "true"]
    found = json.loads(run("generate", TEXT, "--max_new_tokens", "6", *given, "--json")[1])["answers"]
    assert [(one["continuation"], one["score"]) for one in found] == [(one.text, one.score) for one in answers]
    _, out, _ = run("generate", TEXT, "--max_new_tokens", "6", *given)
    assert out.startswith(f"[1] score {answers[0].score:.4f}\n{TEXT}{answers[0].text}\n[2] score ")
    best = lm.generate(TEXT, max_new_tokens=6, num_beams=4)
    assert run("generate", TEXT, "--max_new_tokens", "6", "--num_beams", "4")[1] == f"{TEXT}{best}\n"


def test_fill_takes_the_options_of_one_answer(run: Run, lm: LM) -> None:
    text = "The [MASK] fox"
    filled = lm.fill(text, max_tokens=9, temperature=0.8, presence_penalty=1.0, min_new_tokens=3, seed=2)
    options = ["--max_tokens", "9", "--temperature", "0.8", "--presence_penalty", "1", "--min_new_tokens", "3"]
    assert run("fill", text, *options, "--seed", "2")[1] == f"{filled.text}\n"
    for name in ("--n", "--num_beams", "--stop", "--logprobs"):
        status, _, error = run("fill", text, name, "2")
        assert status == 2
        assert f"unrecognized arguments: {name}" in error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--stream", "--n", "2"], "--stream prints one answer as text; leave out --n"),
        (["--stream", "--num_beams", "2"], "--stream prints one answer as text; leave out --num_beams"),
        (["--stream", "--json"], "--stream prints one answer as text; leave out --json"),
        (["--logprobs", "2"], "--logprobs are printed with --json only; add it"),
        (["--num_beams", "2", "--prompt_lookup", "4"], "prompt_lookup does not go with num_beams 2"),
        (["--early_stopping", "perhaps"], "invalid choice: 'perhaps'"),
        (["--stop_ids", "x"], "argument --stop_ids: invalid int value: 'x'"),
        (["--top_p", "7"], "top_p is 7.0; give more than 0, at most 1"),
        (["--min_q", "7"], "unrecognized arguments: --min_q 7; did you mean --min_p?"),
        (["--min_q", "7", "--sed", "1"], "unrecognized arguments: --min_q, --sed; did you mean --min_p, --seed?"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: list[str], reason: str) -> None:
    status, out, error = run("generate", TEXT, *arguments)
    assert (status, out) == (2, "")
    assert reason in error
    assert error.count("\n") == 1


def test_there_is_an_option_for_every_parameter() -> None:
    parser = OneLineParser(prog="glm x")
    add_generation_arguments(parser, "generate")
    values = generation_options(parser.parse_args([]))
    assert GenerationParams(**values) == GenerationParams()
    assert {*OPTIONS} - {*values} == {"stop", "stop_ids", "forbidden", "logprobs", "prompt_lookup"}  # None unless given
    chat = OneLineParser(prog="glm y")
    add_generation_arguments(chat, "chat")
    missing = {"max_new_tokens", "temperature", "top_p", "seed"} | {*OPTIONS} - {row.name for row in options_of("chat")}
    assert {*values} - {*generation_options(chat.parse_args([]))} == missing - {"logprobs"} - {"stop"}
    assert "(default: the family's published one)" in " ".join(chat.format_help().split())


_LENGTHS = ("max_new_tokens", "min_new_tokens", "no_repeat_ngram_size", "prompt_lookup", "prompt_lookup_ngram")


@pytest.mark.parametrize("verb", ["generate", "fill", "chat"])
def test_help_names_every_default_once(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.partition("--help")[2].split())
    _, *options = re.split(r" --(?=[a-z_]+ (?:[A-Z]+|\{\S+\}) )", text)
    found = {option.split()[0]: option for option in options}
    free = {"max_new_tokens", "temperature", "top_p", "seed"} if verb == "chat" else set()
    face: dict[str, Face] = {"generate": "generate", "fill": "fill", "chat": "chat"}
    for option in OPTIONS.values():
        if option not in options_of(face[verb]):
            assert option.name not in found
            continue
        (named,) = re.findall(r"default: ([^)]+)\)", found[option.name])
        if option.name in free:
            assert named.startswith(("the family's", "what the family's", "a new one"))
        else:
            assert named == (option.unset if option.default in (None, ()) else str(option.default).lower())
        assert option.name not in _LENGTHS or "tokens" in found[option.name]
    if verb == "fill":
        assert "in tokens (default: 64)" in found["max_tokens"]
