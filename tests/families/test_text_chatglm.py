"""ChatGLM-6B's and GLM-130B's tokenizers against recorded answers."""

import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families.recorded import check_decoding, check_texts, check_truncation, recorded, streamed
from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import TokenizerError
from glmkit.families.chatglm_text import ChatGLMTokenizer, load_tokenizer
from glmkit.families.glm130b_text import GLM130BTokenizer
from glmkit.families.glm130b_text import load_tokenizer as load_130b
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.whitespace_pieces import WhitespacePieces
from support.protobuf import without_fields
from support.shared import shared_dir
from support.text import run_text


@cache
def data() -> dict[str, Any]:
    return recorded("chatglm-6b")


def config(rows: int, gmask: int | None = None) -> GLMConfig:
    special = None
    if gmask is not None:
        special = SpecialIds(pad=3, eos=4, cls=None, mask=5, smask=None, gmask=gmask, sop=6, eop=7)
    return GLMConfig(vocab_size=rows, hidden_size=8, num_layers=1, num_heads=1, special=special)


@cache
def tokenizer(rows: int | None = None) -> ChatGLMTokenizer:
    loaded = load_tokenizer(shared_dir("tokenizers", "chatglm-6b"), None if rows is None else config(rows))
    assert loaded is not None
    return loaded


@cache
def big() -> GLM130BTokenizer:
    loaded = load_130b(shared_dir("tokenizers", "chatglm-6b"), None)
    assert loaded is not None
    return loaded


def model(made: ChatGLMTokenizer | GLM130BTokenizer) -> WhitespacePieces:
    assert isinstance(made.model, WhitespacePieces)
    return made.model


def test_texts() -> None:
    check_texts(tokenizer(), data())


def test_decoding() -> None:
    check_decoding(tokenizer(), data())
    for case in data()["decode_ids"]:
        assert run_text(tokenizer().model, case["ids"]) == case["sp_decode"]


def test_special_ids() -> None:
    special = data()["special"]
    for name, expected in special["ids"].items():
        index = tokenizer().token_to_id(name)
        assert (0 if index is None else index) == expected, name
    assert tokenizer().vocab_size == special["len"]
    assert (tokenizer().padding_side, tokenizer().truncation_side) == ("left", "right")
    roles = {"pad": "pad", "unk": "unk", "mask": "mask", "gmask": "gmask", "sop": "bos", "eop": "eos", "eos": "eos"}
    for role, name in roles.items():
        assert getattr(tokenizer().special, role) == special["attributes"][f"{name}_token_id"]
    assert all(tokenizer().kind_of(index) == "special" for index in special["all_special_ids"])


def test_batches() -> None:
    for case in data()["batches"]:
        options, expected = case["kwargs"], case["out"]
        limit = options["max_length"] if options.get("truncation") else None
        texts = [text if case.get("pair") else (text, None) for text in case["texts"]]
        rows = [tokenizer().encode_inputs(text, pair, max_length=limit) for text, pair in texts]
        if not options.get("padding"):
            assert (rows if isinstance(expected["input_ids"][0], list) else rows[0]) == expected["input_ids"]
            continue
        length = options["max_length"] if options["padding"] == "max_length" else None
        batch = tokenizer().pad_batch(rows, length=length, multiple_of=options.get("pad_to_multiple_of"))
        assert batch.input_ids.tolist() == expected["input_ids"]
        assert batch.position_ids.tolist() == expected["position_ids"]
        blocked = (~batch.visible()).astype(int).tolist()
        assert blocked == expected["attention_mask"], "the published mask says what is hidden"


def test_truncation() -> None:
    check_truncation(tokenizer(), data())


def test_switches_of_the_vocabulary() -> None:
    switches: dict[str, dict[str, bool]] = {
        "encode": {},
        "no_dummy_prefix": {"dummy_prefix": False},
        "no_linebreak": {"linebreak": False},
        "no_whitespaces": {"whitespaces": False},
    }
    for case in data()["sp_encode"]:
        for name, switch in switches.items():
            # Equally good cuts of long runs depend on the library's version.
            accepted = (case[name], case.get(f"{name}_sp_0_1_99"))
            assert model(tokenizer()).encode(case["text"], **switch) in accepted, (name, case["text"])
        assert run_text(model(tokenizer()), case["encode"]) == case["decode"]


def test_the_first_release_has_image_codes() -> None:
    first = tokenizer(150528)
    recorded_first = data()["image_offset_20000"]
    for name, expected in recorded_first["special"]["ids"].items():
        assert first.token_to_id(name) == expected
    assert first.vocab_size == recorded_first["special"]["len"]
    for case in recorded_first["cases"]:
        assert first.encode(case["text"], specials=True) == case["ids"]
        assert first.encode_batch([case["text"]]) == [case["ids"]]
        assert first.encode_inputs(case["text"]) == case["ids_special"]
        assert first.decode(case["ids_special"], skip_specials=False) == case["decoded_special"]
    for case in recorded_first["decode_ids"]:
        assert first.decode(case["ids"], skip_specials=False) == case["decoded"]
        assert streamed(first, case["ids"]) == case["decoded"]
    assert (first.id_to_token(7), first.token_to_id("<image_7>"), first.token_to_id("<image_20000>")) == (
        "<image_7>", 7, None
    )  # fmt: skip


def test_finetuning_texts() -> None:
    with open(shared_dir("fixtures", "chatglm-6b-finetune-data") / "expected.json", encoding="utf-8") as file:
        content = json.load(file)
    for case in content["tokenize"]:
        assert tokenizer().encode(case["text"], specials=True) == case["ids"]
        assert tokenizer().encode_inputs(case["text"]) == case["ids_with_special"]
        assert tokenizer().decode(case["ids"]) == case["decoded"]
    for case in content["eval"]:
        expected = case["expect"]
        rows = [[index for index in row if index != 3] for row in expected["input_ids"]]
        batch = tokenizer().pad_batch(rows)
        assert batch.input_ids.tolist() == expected["input_ids"]
        assert batch.position_ids.tolist() == expected["position_ids"]


SPECIALS = {130000, 130001, 130002, 130004, 130005, 130006, 130007, 0, 1, 2, 3}


def test_plain_text_never_holds_special_ids() -> None:
    texts = [case["text"] for case in data()["cases"]] + ["[MASK][gMASK]<sop><eop><pad><unk><s></s><ENC><dBLOCK>"]
    assert SPECIALS & set(tokenizer().encode(texts[-1], specials=True))
    for text, ids in zip(texts, tokenizer().encode_batch(texts), strict=True):
        assert not SPECIALS & set(ids), text
        assert tokenizer().encode(text) == ids
        assert not any(index in big().special.mask_ids() for index in big().encode(text))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_streamed_is_whole(draw: st.DataObject) -> None:
    made = draw.draw(st.sampled_from([tokenizer(), tokenizer(150528), big()]))
    offset = model(made).offset
    marks = [made.token_to_id(name) for name in ("<", "n", ">", "|", "▁", ",", "tab", "<n>", "<|blank_3|>", "▁<", "▁'")]
    common = st.sampled_from([index for index in marks if index is not None])
    one = st.one_of(
        st.integers(offset, made.vocab_size - 1), st.integers(0, offset + 60), common,
        st.integers(offset + 130000, offset + 130343),
    )  # fmt: skip
    ids = draw.draw(st.lists(one, max_size=24))
    for skip in (True, False):
        assert streamed(made, ids, skip_specials=skip) == made.decode(ids, skip_specials=skip)


def test_a_spelt_line_break_is_one() -> None:
    """The published decoder works on text: pieces that spell "<n>" are a line break to it, also step by step."""
    ids = [tokenizer().token_to_id(name) for name in ("<", "n", ">")]
    assert None not in ids
    assert tokenizer().decode([index for index in ids if index is not None]) == "\n"
    assert streamed(tokenizer(), [index for index in ids if index is not None]) == "\n"
    assert streamed(tokenizer(), [ids[0], ids[1]]) == "<n"  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("given", "declared", "gmask"),
    [
        (None, None, 130001), (None, 0, 130001), (None, 20000, 150001), (config(130528), None, 130001),
        (config(150528), None, 150001), (config(130528), 20000, 130001), (config(256), None, 130001),
        (config(150528), 20000, 150001), (config(160000, gmask=150001), None, 150001),
    ],
)  # fmt: skip
def test_which_release(tmp_path: Path, given: GLMConfig | None, declared: int | None, gmask: int) -> None:
    tokenizer().save(tmp_path)
    if declared is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"num_image_tokens": declared}))
    made = load_tokenizer(tmp_path, given)
    assert made is not None
    assert made.special.gmask == gmask


def test_contradicting_or_damaged_settings(tmp_path: Path) -> None:
    tokenizer().save(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"num_image_tokens": 0}')
    with pytest.raises(TokenizerError, match="num_image_tokens 0, but the model has rows for 20000 image codes"):
        load_tokenizer(tmp_path, config(150528))
    settings.write_text('{"num_image_tokens": "many"}')
    with pytest.raises(TokenizerError, match="num_image_tokens is 'many'"):
        load_tokenizer(tmp_path, None)
    settings.write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not valid JSON"):
        load_tokenizer(tmp_path, None)
    assert load_tokenizer(tmp_path / "nowhere", None) is None
    assert load_130b(tmp_path / "nowhere", None) is None


def test_saved_and_pickled(tmp_path: Path) -> None:
    for made, load in ((tokenizer(), load_tokenizer), (big(), load_130b)):
        made.save(tmp_path)
        again = load(tmp_path, None)
        assert again is not None
        for copy in (again, pickle.loads(pickle.dumps(made))):
            assert copy.fingerprint() == made.fingerprint()
            assert copy.encode_inputs("你好 [MASK]\n\n  x") == made.encode_inputs("你好 [MASK]\n\n  x")
        assert isinstance(made, Tokenizer)
    original = shared_dir("tokenizers", "chatglm-6b") / "ice_text.model"
    assert (tmp_path / "ice_text.model").read_bytes() == original.read_bytes()
    assert tokenizer().fingerprint() != big().fingerprint() != tokenizer(150528).fingerprint()


def test_the_plain_vocabulary_gets_what_it_lacks(tmp_path: Path) -> None:
    """icetk's own file ends with piece 129,999 and has no byte fallback: special tokens and bytes are put behind it."""
    whole = (shared_dir("tokenizers", "chatglm-6b") / "ice_text.model").read_bytes()
    plain = without_fields(whole, keep_pieces=130_000, trainer_fields={35})
    assert len(plain) < len(whole)
    (tmp_path / "ice_text.model").write_bytes(plain)
    made = load_130b(tmp_path, config(150528))
    assert made is not None
    assert made.vocab_size == big().vocab_size == 150344
    for index in (*range(149990, 150344), 20000, 20001, 20002, 20003, 20004, 20005):
        assert made.id_to_token(index) == big().id_to_token(index)
        assert made.kind_of(index) == big().kind_of(index)
    for case in data()["sp_encode"]:
        ids = made.encode(case["text"])
        assert ids == big().encode(case["text"]), case["text"]
        assert made.decode(ids) == big().decode(ids)
    made.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "ice_text.model").read_bytes() == plain


def test_130b_inputs() -> None:
    """`THUDM/GLM-130B:generate.py`: parts around masks are encoded one by one, the end closes an open text."""
    made = big()
    for case in data()["image_offset_20000"]["cases"]:
        assert made.encode(case["text"]) == case["ids"]
    hello, world = made.encode("你好"), made.encode(" 世界")
    assert made.encode("你好[MASK] 世界[gMASK]", specials=True) == [*hello, 150000, *world, 150001]
    assert made.encode_inputs("你好") == [*hello, 150001, 150004]
    assert made.encode_inputs("你好[gMASK]") == [*hello, 150001, 150004]
    assert made.encode_inputs("你好[sMASK] 世界") == [*hello, 150002, *world, 20002, 150004]
    row = made.build_inputs([*hello, 150000, *world], [5, 6])
    assert row == [*hello, 150000, *world, 20002, 150004, 5, 6, 150005]
    batch = made.pad_batch([row, made.encode_inputs("你好")])
    start = row.index(150004)
    assert batch.position_ids[0, 0].tolist() == [*range(start), *[len(hello)] * (len(row) - start)]
    assert not batch.position_ids[:, 1].any()
    assert batch.position_ids[1, 0, -4:].tolist() == [0, 1, 2, 3]
    assert batch.prefix_lengths.tolist() == [start, len(row) - 1]
