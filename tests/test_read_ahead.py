"""Weights that do not fit memory: the same answers, and each byte that does not stay is read once a pass."""

import copy
from pathlib import Path

import pytest

import glmkit
from glmkit import memory, read_ahead
from glmkit.checkpoint.native import write_model
from glmkit.config import Quantization
from glmkit.errors import RequestError
from glmkit.quantizing import quantize
from glmkit.read_ahead import ReadAhead
from glmkit.session import LM
from support.served_models import small_base

LINUX = Path("/proc/self/maps").exists()


@pytest.fixture(scope="module", params=["floats", "int4"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm, folder = small_base(), tmp_path_factory.mktemp("base")
    write_model(folder, lm.config, dict(lm.model.named_parameters()))
    lm.tokenizer.save(folder)
    if request.param == "floats":
        return folder
    target = tmp_path_factory.mktemp("quantised") / "int4"
    quantize(folder, target, Quantization.usual(4), text="The quick brown fox jumps over the lazy dog. " * 9)
    return target


def reader(lm: LM) -> ReadAhead | None:
    hooks = lm.model.model.layers[0]._forward_pre_hooks.values()
    return next((hook.args[0] for hook in hooks), None)  # type: ignore[attr-defined]


def test_answers_are_the_same_and_bytes_are_read_once_a_pass(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = glmkit.load(directory, device="cpu")
    assert reader(plain) is None, "it fits"
    expected = plain.generate("The quick brown", max_new_tokens=7, min_new_tokens=7, prompt_lookup=0)
    for resident in (0, 1 << 30):
        monkeypatch.setenv(read_ahead.VARIABLE, str(resident))
        lm = glmkit.load(directory, device="cpu")
        assert lm.generate("The quick brown", max_new_tokens=7, min_new_tokens=7, prompt_lookup=0) == expected
        ahead = reader(lm)
        if not LINUX:
            assert ahead is None
            continue
        assert ahead is not None
        sizes = [sum(part.size for part in stage) for stage in ahead._stages]
        stack = lm.model.model
        read = [*stack.layers.parameters(), *(lm.model.lm_head or stack.embed_tokens or stack).parameters()]
        whole = sum(weight.nbytes for weight in read)
        assert 0.99 * whole <= sum(sizes) <= whole, "all but what had to be copied to another address"
        passes = 7  # one of the prompt, six of a token each
        if resident:
            assert (ahead.kept, ahead.read_bytes) == (len(sizes), sum(sizes))
        else:
            ahead._thread.submit(int).result()  # behind the first stage of the next pass
            assert (ahead.kept, ahead.read_bytes) == (0, passes * sum(sizes) + sizes[0])
        assert f"{ahead.kept} of {len(sizes)} parts stay" in " ".join(lm.parts.notes)
        assert copy.deepcopy(ahead) is ahead


@pytest.mark.skipif(not LINUX, reason="where weights lie in files is read from /proc")
def test_it_begins_where_memory_ends(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = glmkit.load(directory, device="cpu").model
    monkeypatch.setattr(read_ahead, "available_memory", lambda: memory.RESERVE + 1000)
    ahead = read_ahead.read_ahead(model)
    assert ahead is not None
    assert ahead.kept == 0
    monkeypatch.setattr(read_ahead, "available_memory", lambda: None)
    assert read_ahead.read_ahead(model) is None
    monkeypatch.setenv(read_ahead.VARIABLE, "much")
    with pytest.raises(RequestError, match="give a number of bytes"):
        read_ahead.read_ahead(model)
    floats = small_base().model
    assert read_ahead.read_ahead(floats, 0) is None, "nothing of it lies in a file"
