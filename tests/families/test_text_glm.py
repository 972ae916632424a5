"""GLM's tokenizers against what both published implementations were recorded to do."""

import pickle
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families.glm_published import check_choice_inputs, check_generation_inputs, check_glm_batches
from families.recorded import check_decoding, check_texts, check_truncation, recorded, streamed
from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import TokenizerError
from glmkit.families.glm_strings import Kind, command_tokens
from glmkit.families.glm_text import GLMTokenizer, load_tokenizer
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.sentencepiece import SentencePieceModel
from support.shared import shared_dir
from support.text import run_text

KINDS: tuple[Kind, ...] = get_args(Kind)
# Which special strings each recorded native tokenizer was made with, as our `masks`.
NATIVE = {"bert": "none", "gpt2": "own", "roberta": "none", "chinese": "own"}
each_kind = pytest.mark.parametrize("kind", KINDS)


def directory(kind: Kind) -> Path:
    return shared_dir("tokenizers", "glm-chinese" if kind == "chinese" else "glm-english")


@cache
def loaded(kind: Kind) -> GLMTokenizer:
    tokenizer = load_tokenizer(directory(kind), None, kind=kind)
    assert tokenizer is not None
    return tokenizer


@cache
def data(kind: Kind) -> dict[str, Any]:
    return recorded(f"glm-{kind}")


def hub(kind: Kind) -> GLMTokenizer:
    return loaded(kind).with_options(reading="hub")


def native(kind: Kind) -> GLMTokenizer:
    return loaded(kind).with_options(writing="native", inputs="native")


def config(rows: int, **special: int) -> GLMConfig:
    ids = None
    if special:
        ids = SpecialIds(**{"pad": 0, "eos": 0, "cls": 1, "mask": 2, "smask": None, "sop": 3, "eop": 4} | special)
    return GLMConfig(vocab_size=rows, hidden_size=8, num_layers=1, num_heads=1, special=ids)


@each_kind
def test_hub_texts(kind: Kind) -> None:
    check_texts(hub(kind), data(kind))


@each_kind
def test_hub_decoding(kind: Kind) -> None:
    check_decoding(hub(kind), data(kind))


@each_kind
def test_native_texts(kind: Kind) -> None:
    tokenizer = native(kind)
    for case in data(kind)["cases"]:
        ids = case["ids"] if case.get("native_same") else case["native_ids"]
        assert tokenizer.encode(case["text"], specials=True) == ids, case["text"]
        assert loaded(kind).encode(case["text"], specials=True) == ids, "the training code's reading is the default"
        written = case.get("native_decoded", case["decoded"])
        assert tokenizer.decode(ids, skip_specials=False) == written, case["text"]
        assert streamed(tokenizer, ids) == written, case["text"]
    for case in data(kind)["decode_ids"]:
        assert tokenizer.decode(case["ids"], skip_specials=False) == case["native_decoded"]


def test_a_later_host_library_keeps_the_white_space() -> None:
    tokenizer = loaded("gpt2").with_options(reading="hub-4.44", writing="hub-4.44")
    differing = 0
    for case in data("gpt2")["cases"]:
        ids = case.get("ids_hf444", case["ids"])
        assert tokenizer.encode(case["text"], specials=True) == ids
        assert tokenizer.decode(ids, skip_specials=False) == case.get("decoded_hf444", case["decoded"])
        differing += "ids_hf444" in case
    assert differing


@each_kind
def test_special_ids(kind: Kind) -> None:
    tokenizer, special = hub(kind), data(kind)["special"]
    missing = special["ids"]["nosuchpiece_zz"]
    for name, expected in special["ids"].items():
        index = tokenizer.token_to_id(name)
        assert (missing if index is None else index) == expected, name
    assert tokenizer.vocab_size == special["len"]
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (special["padding_side"], special["truncation_side"])
    roles = {"pad": "pad", "cls": "cls", "sep": "sep", "mask": "mask", "sop": "sop", "eop": "eop", "eos": "eos"}
    roles |= {"gmask": "gmask", "smask": "smask"}
    for role, name in roles.items():
        expected = special["attributes"].get(f"{name}_token_id")
        if isinstance(expected, int):
            assert getattr(tokenizer.special, role) == expected, role
    for index in special["all_special_ids"]:
        assert tokenizer.kind_of(index) == "special"


@each_kind
def test_the_training_codes_special_tokens(kind: Kind) -> None:
    for name, case in data(kind)["native_special"].items():
        options = case["args"]
        made = command_tokens(
            kind,
            loaded(kind).model,
            task_masks=options.get("add_task_mask", False),
            decoder_mask=options.get("add_decoder_mask", False),
            fixed_order=options.get("fix_command_token", False),
        )
        found = [{"name": c.name, "token": c.text, "id": c.id, "lstrip": c.lstrip} for c in made]
        assert found == case["commands"], name


@each_kind
def test_batches_and_truncation(kind: Kind) -> None:
    check_glm_batches(hub(kind), data(kind))
    check_truncation(hub(kind), data(kind))


@each_kind
def test_generation_and_choice_inputs(kind: Kind) -> None:
    check_generation_inputs(hub(kind), data(kind))
    check_choice_inputs(hub(kind), data(kind))


def test_chinese_pieces() -> None:
    model = loaded("chinese").model
    assert isinstance(model, SentencePieceModel)
    for case in data("chinese")["sp_encode"]:
        ids = model.encode(case["text"])
        assert ids == case["encode"]
        assert model.pieces(case["text"]) == case["pieces"]
        assert run_text(model, ids) == case["decode"]


@each_kind
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_streamed_is_whole(kind: Kind, draw: st.DataObject) -> None:
    tokenizer = draw.draw(st.sampled_from([hub(kind), native(kind)]))
    specials = [index for index in vars(tokenizer.special).values() if index is not None]
    one = st.one_of(st.integers(0, tokenizer.model.size - 1), st.integers(0, 300), st.sampled_from(specials))
    ids = draw.draw(st.lists(one, max_size=24))
    for skip in (True, False):
        assert streamed(tokenizer, ids, skip_specials=skip) == tokenizer.decode(ids, skip_specials=skip)


@each_kind
def test_plain_text_never_holds_special_ids(kind: Kind) -> None:
    tokenizer = loaded(kind)
    unknown = {tokenizer.special.unk, tokenizer.model.find("[UNK]"), tokenizer.model.find("<unk>")}
    specials = {index for index in vars(tokenizer.special).values() if index is not None} - unknown
    texts = [case["text"] for case in data(kind)["cases"]]
    assert any(specials & set(tokenizer.encode(text, specials=True)) for text in texts)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert not specials & set(ids), text
        assert tokenizer.encode(text) == ids
        assert max(ids, default=0) < tokenizer.model.size


@pytest.mark.parametrize(
    ("rows", "kind"), [(30592, "bert"), (50048, "chinese"), (50304, "gpt2"), (50304, "roberta"), (99, "gpt2")]
)
def test_the_config_decides(tmp_path: Path, rows: int, kind: Kind) -> None:
    """All vocabularies in one directory, but for the two that share a size."""
    for other in KINDS if rows != 99 else (kind,):
        if {other, kind} != {"gpt2", "roberta"}:
            loaded(other).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path, config(rows))
    assert tokenizer is not None
    assert tokenizer.kind == kind
    assert tokenizer.fingerprint() == loaded(kind).fingerprint()


def test_a_directory_of_several_vocabularies_needs_a_choice() -> None:
    folder = directory("gpt2")
    for asked in (None, config(50304)):
        with pytest.raises(TokenizerError, match="several vocabularies .*roberta-merges.txt.*say which kind="):
            load_tokenizer(folder, asked)
    with pytest.raises(TokenizerError, match="kind chinese .*50304 rows reads gpt2 or roberta"):
        load_tokenizer(directory("chinese"), config(50304))


def test_a_directory_without_a_vocabulary(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path, None) is None


@each_kind
def test_saved_and_pickled(kind: Kind, tmp_path: Path) -> None:
    tokenizer = loaded(kind)
    tokenizer.save(tmp_path / "new")
    again = load_tokenizer(tmp_path / "new", None)
    assert again is not None
    for copy in (again, pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint() == tokenizer.fingerprint()
        text = "Ng is an adjunct [MASK] at 斯坦福 <|endoftext|>"
        assert copy.encode(text, specials=True) == tokenizer.encode(text, specials=True)
        assert copy.files == tokenizer.files
    for style in ("native", "hub", "hub-4.44"):
        other = tokenizer.with_options(reading=style, writing=style, inputs=style)
        ids = other.encode_inputs(text)
        assert pickle.loads(pickle.dumps(other)).decode(ids, skip_specials=False) == other.decode(
            ids, skip_specials=False
        )
    assert len({t.fingerprint() for t in (tokenizer, hub(kind), *map(loaded, KINDS))}) == 5
    assert isinstance(tokenizer, Tokenizer)


def test_task_masks_follow_the_config(tmp_path: Path) -> None:
    loaded("bert").save(tmp_path)
    special = {"cls": 101, "mask": 103, "sop": 30522, "eop": 30523}
    with_masks = load_tokenizer(tmp_path, config(30592, gmask=30524, **special))
    assert with_masks is not None
    assert with_masks.encode("a [gMASK]", specials=True)[-1] == with_masks.special.gmask == 30524
    without = load_tokenizer(tmp_path, config(30592, gmask=103, **special))
    assert without is not None
    assert without.special.gmask == 103
    assert without.special.smask is None


def test_the_first_chinese_run_shares_an_id(tmp_path: Path) -> None:
    loaded("chinese").save(tmp_path)
    tokenizer = load_tokenizer(tmp_path, config(50048, gmask=50007, sop=50006, eop=50007))
    assert tokenizer is not None
    assert tokenizer.encode("[gMASK]", specials=True) == [50007]
    assert (tokenizer.special.gmask, tokenizer.special.smask, tokenizer.special.eop) == (50007, 50008, 50007)


def test_unknown_options_and_ids() -> None:
    tokenizer = loaded("gpt2")
    with pytest.raises(TokenizerError, match="reading is 'hf'; use one of native, hub"):
        tokenizer.with_options(reading="hf")  # type: ignore[arg-type]
    for index in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=f"token id {index} is outside the vocabulary of 50266 tokens"):
            tokenizer.decode([5, index])
        with pytest.raises(TokenizerError, match="outside"):
            tokenizer.id_to_token(index)


def test_blanks_by_name() -> None:
    """What the filling of blanks relies on: a mask's id reads as the string that stands for it in text."""
    for kind in KINDS:
        tokenizer = loaded(kind)
        for index in tokenizer.special.mask_ids():
            assert tokenizer.encode(tokenizer.id_to_token(index), specials=True) == [index]
        assert tokenizer.without_blank_space("a  [MASK] b") == ("a  [MASK] b" if kind == "bert" else "a[MASK] b")
