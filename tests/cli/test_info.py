"""`glm info`: published sizes to the last number, directories, lists, and mistakes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from diagnosis.directories import chatglm_directory, chatglm_settings, write_json
from glmkit.cli import info
from glmkit.cli.parser import OneLineParser
from glmkit.errors import GLMKitError
from glmkit.families.family import preset_names


def run(*arguments: str) -> int:
    parser = OneLineParser(prog="glm info", description="sizes")
    info.add_arguments(parser)
    return info.run(parser.parse_args(list(arguments)))


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


# By hand from the published shapes: L(12h^2 + 13h) + Vh + 2(P+1)h + 2h for GLM; for the others the blocks' own sums.
PARAMETERS = {
    "glm-base": 109_338_624,
    "glm-10b": 9_880_682_496,
    "glm-130b": 128_697_794_560,
    "chatglm-6b": 6_173_286_400,  # the head is equal to the embedding and counted once
    "chatglm2-6b": 6_243_584_000,
    "glm-4-9b": 9_399_951_360,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_a_preset(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(capsys, "--preset", name)
    assert values["parameters"]["total"] == PARAMETERS[name]
    assert values["bytes"]["float32"] == 4 * PARAMETERS[name]
    assert values["bytes"]["bfloat16"] == 2 * PARAMETERS[name]


def test_glm_130b_by_hand_and_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    values = as_json(capsys, "--preset", "glm-130b")
    assert time.perf_counter() - started < 2.0
    layers, width, inner, vocabulary = 70, 12288, 32768, 150528
    linears = 4 * width * width + 3 * width * inner
    rows = 4 * width + 2 * inner + width
    biases_and_norms = rows + 4 * width
    assert values["parameters"]["per_layer"] == linears + biases_and_norms
    assert values["parameters"]["embedding"] == vocabulary * width
    assert values["parameters"]["head"] == 0
    assert values["parameters"]["non_embedding"] == layers * (linears + biases_and_norms) + 2 * width
    rest = (width + 4) * vocabulary + 2 * (layers * biases_and_norms + 2 * width)
    assert values["bytes"]["int8"] == rest + layers * (linears + 4 * rows)
    assert values["bytes"]["int4"] == rest + layers * (linears // 2 + linears // 32 + 4 * rows)
    assert values["cache_bytes_per_token"] == 2 * 2 * layers * width


def test_grouped_heads_have_a_small_cache(capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(capsys, "--preset", "glm-4-9b")
    assert (values["kv_heads"], values["head_size"]) == (2, 128)
    assert values["cache_bytes_per_token"] == 2 * 2 * 40 * 2 * 128


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--preset", "glm-130b") == 0
    out = capsys.readouterr().out
    for word in ("GLM-130B", "128,697,794,560 (129 B)", "12,288", "239.7 GiB", "rope", "deepnorm", "geglu", "erf"):
        assert word in out, out


def test_every_preset_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    assert [name for name in preset_names() if f"{name} " not in out] == []
    assert "…" not in out
    listed = as_json(capsys)["presets"]
    assert [row["name"] for row in listed] == preset_names()


def test_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(capsys, str(chatglm_directory(tmp_path / "tiny")))
    assert (values["layers"], values["width"], values["vocabulary"]) == (2, 32, 96)
    assert values["parameters"]["per_layer"] == 12 * 32**2 + 13 * 32


def test_a_config_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "config.json", chatglm_settings(130528, 130000, num_layers=28))
    values = as_json(capsys, str(tmp_path))
    assert (values["family"], values["layers"], values["vocabulary"]) == ("chatglm", 28, 130528)


def test_a_broken_config_says_what_is_wrong(tmp_path: Path) -> None:
    directory = chatglm_directory(tmp_path / "m")
    write_json(directory / "config.json", chatglm_settings(96, 90, num_layers=3))
    with pytest.raises(GLMKitError, match="layers.2"):
        run(str(directory / ".." / "m"), "--config", str(directory / "config.json"))
    write_json(directory / "config.json", {"model_type": "chatglm", "num_layers": 10**12})
    with pytest.raises(GLMKitError, match="num_layers is 1000000000000"):
        run(str(directory))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "glm-13b"], "no preset is called 'glm-13b'; did you mean 'glm-130b'"),
        (["chatglm-6"], "chatglm-6 is no directory, and no preset is called that; did you mean 'chatglm-6b"),
        (["glm-10b", "--preset", "glm-2b"], "both given"),
        (["--config", "glm-2b"], "--config glm-2b goes with a directory"),
        (["--presett", "glm-2b"], "did you mean --preset"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(GLMKitError, match=message):
        run(*arguments)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(GLMKitError, match="is a file, not a directory; give the directory"):
        run(str(tmp_path / "model.bin"))
