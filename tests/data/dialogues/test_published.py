"""Published sets by name: found under their published file names, fetched once, explained where that cannot be."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from glmkit.data.dialogues import published
from glmkit.data.dialogues.dialogue_set import DialogueSpec, open_dialogues
from glmkit.data.dialogues.published import PUBLISHED, locate
from glmkit.locks import try_lock
from glmkit.progress import Progress
from support.fake_hub import FakeHub, fake_hub

from .opened import one_set, opened, refusal, texts, write

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "finetune"
NAME = "school_math_0.25M"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory without data, cache or network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLMKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def hub(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has one set of BELLE."""
    with fake_hub() as running:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        content = (ASSETS / "bellegroup" / f"{NAME}.json").read_bytes()
        path = f"/datasets/BelleGroup/{NAME}/resolve/main/{NAME}.json"
        running.special[path] = lambda handler: handler.send(content)
        yield running


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("dureader_qg", 8),
        ("AdvertiseGen", 8),
        ("adgen", 8),
        ("school_math_0.25M", 8),
        ("bellegroup", 8),
        ("BelleGroup/school_math_0.25M", 8),
        ("multiturn_chat_0.8M", 8),
        ("alpaca", 8),
        ("AdvertiseGen/dev.json", 2),
    ],
)
def test_names_in_the_data_directory(name: str, rows: int, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(one_set(name, data_dir=str(ASSETS))) == rows
    monkeypatch.setenv("GLMKIT_DATA", str(ASSETS))
    found = one_set(name)
    assert len(found) == rows
    assert "question_generation" not in found.report.remarks, "the name says what is trained"


def test_the_wording_of_the_sets_is_known_afterwards(nowhere: Path) -> None:
    def wording(*names: str, **more: Any) -> list[str]:
        return list(open_dialogues(DialogueSpec(train=names, data_dir=str(ASSETS), **more)).templates)

    assert wording("dureader_qg") == ["dureader_qg"]
    assert wording("dureader_qg", "bellegroup") == wording("AdvertiseGen/dev.json") == []
    plain = write(nowhere / "asked.json", (ASSETS / "dureader_qg" / "train.json").read_bytes())
    assert wording(str(plain)) == ["dureader_qg"], "a form whose question has words of its own"
    talk = write(
        nowhere / "talk.jsonl", [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]
    )
    assert wording(str(plain), str(talk)) == wording(str(talk), template=("belle",)) == []
    (nowhere / "own.yaml").write_text('prompt: "{content}?"\nanswer: "{summary}"\n')
    assert wording("AdvertiseGen/dev.json", template=("own.yaml",)) == [str(nowhere / "own.yaml")]


def folder(root: Path) -> None:
    write(root / "DuReader_QG" / "train.json", (ASSETS / "dureader_qg" / "train.json").read_bytes())


def archive(root: Path) -> None:
    root.mkdir()
    with tarfile.open(root / "dureader_qg.tar.gz", "w:gz") as made:
        for name in ("train.json", "dev.json"):
            content = (ASSETS / "dureader_qg" / name).read_bytes()
            member = tarfile.TarInfo(f"dureader_qg/{name}")
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("made", [folder, archive])
def test_places_of_a_set(made: Callable[[Path], None], nowhere: Path) -> None:
    made(nowhere / "data")
    found = one_set("dureader_qg", data_dir=str(nowhere / "data"))
    assert texts(found[0])[1] == ("assistant", "在已知答案的前提下，问题：长城有多长？")


def test_a_path_goes_before_a_name(nowhere: Path) -> None:
    write(nowhere / "alpaca" / "train.jsonl", [{"prompt": "q", "response": "a"}])
    assert texts(one_set("alpaca")[0]) == [("user", "q"), ("assistant", "a")]


def test_without_network_one_line_says_what_goes_where(nowhere: Path) -> None:
    error = refusal("dureader_qg", data_dir=str(nowhere))
    assert str(error) == (
        "dureader_qg is not here, and HF_HUB_OFFLINE forbids to fetch it; put train.json and dev.json from "
        f"https://github.com/PaddlePaddle/PaddleNLP into {nowhere}/dureader_qg"
    )
    for one in PUBLISHED:
        line = str(refusal(one.folder))
        assert "\n" not in line
        assert all(name in line for name in one.files)
        assert f"{nowhere}/cache/glmkit/data/{one.folder}" in line


def test_a_word_that_is_no_name(nowhere: Path) -> None:
    error = refusal("dureader-gq")
    assert "no file, directory or published set of that name; did you mean 'dureader_qg'?" in str(error)
    assert "no such directory" in str(refusal("alpaca", data_dir=str(nowhere / "none")))


def test_a_set_is_fetched_once(hub: FakeHub, nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "data").mkdir()
    for data_dir in (None, str(nowhere / "data")):
        hub.asked.clear()
        place = locate(NAME, data_dir, Progress())
        assert len(hub.asked) == 2, "its size, then the file"
        said = capsys.readouterr().err
        assert "1.0 KiB" in said
        assert "GPL-3.0" in said
        assert locate(NAME, data_dir).path.startswith(str(nowhere / ("cache" if data_dir is None else "data")))
        assert len(hub.asked) == 2
        assert len(one_set(place.path)) == 8
        if data_dir is None:
            (Path(place.path)).unlink()
            Path(place.path).parent.rmdir()


def test_a_download_that_breaks_off_goes_on(hub: FakeHub, nowhere: Path) -> None:
    (path,) = hub.special
    whole, sent = hub.special[path], []

    def half(handler: object) -> None:
        sent.append(handler)
        content = (ASSETS / "bellegroup" / f"{NAME}.json").read_bytes()
        handler.half(content) if len(sent) == 2 else handler.send(content)  # type: ignore[attr-defined]

    hub.special[path] = half
    error = refusal(NAME)
    assert "broke off" in str(error)
    assert f"put {NAME}.json from" in str(error)
    hub.special[path] = whole
    assert len(one_set(NAME)) == 8


def test_ranks_wait_for_the_one_that_downloads(hub: FakeHub, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = nowhere / "cache" / "glmkit" / "data" / NAME / ".downloading"
    mark.parent.mkdir(parents=True)
    other = open(mark, "wb")  # noqa: SIM115 - closed by the pause
    assert try_lock(other.fileno(), mark)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        other.close()

    monkeypatch.setattr(published.time, "sleep", pause)
    assert len(one_set(NAME)) == 8
    assert len(pauses) == 1


def test_a_silent_host(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refusal(NAME)
    assert str(error).startswith(f"{NAME} is not here and cannot be fetched: http://127.0.0.1:9 does not answer")
    assert str(error).endswith(f"into {nowhere}/cache/glmkit/data/{NAME}")


def test_a_published_set_may_be_one_of_several(nowhere: Path) -> None:
    sets = opened("AdvertiseGen", "alpaca", data_dir=str(ASSETS), weights=[3.0, 1.0])
    assert [(one.name, len(one)) for one in sets.train] == [("AdvertiseGen", 8), ("alpaca", 8)]
    assert [len(one) for one in sets.validation] == [2]
    assert published.published("nothing") is None
