"""The published kinds of vocabulary in small, without reference data: worked examples and damaged directories."""

import json
from pathlib import Path

import pytest

from families.recorded import streamed
from glmkit.config import GLMConfig
from glmkit.errors import TokenizerError
from glmkit.families.chatglm_text import load_tokenizer as load_chatglm
from glmkit.families.glm130b_text import load_tokenizer as load_130b
from glmkit.families.glm_text import GLMTokenizer, Kind, load_tokenizer
from tokenizer.small_vocabularies import WORDS, bpe_texts, sentencepiece_bytes

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def files(kind: Kind) -> dict[str, bytes]:
    entries, merges = bpe_texts()
    if kind == "bert":
        return {"vocab.txt": "\n".join(WORDS).encode()}
    if kind == "chinese":
        return {"cog-pretrain.model": sentencepiece_bytes()}
    if kind == "roberta":
        ids = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
        ids |= {entry: index + 4 for entry, index in json.loads(entries).items()}
        entries = json.dumps(ids | {"<mask>": len(ids)})
    return {"vocab.json": entries.encode(), "merges.txt": merges.encode()}


def made(kind: Kind, folder: Path) -> GLMTokenizer:
    for name, content in files(kind).items():
        (folder / name).write_bytes(content)
    tokenizer = load_tokenizer(folder, None)
    assert tokenizer is not None
    assert tokenizer.kind == kind
    return tokenizer


def test_words(tmp_path: Path) -> None:
    tokenizer = made("bert", tmp_path)
    size, special = len(WORDS), tokenizer.special
    assert (special.sop, special.eop, special.gmask, special.smask, special.eos) == (size, size + 1, 4, None, 0)
    assert tokenizer.encode_inputs("the [MASK] fox") == [2, 5, 4, 7, 3]
    assert tokenizer.encode_inputs("the", "fox") == [2, 5, 3, 7, 3]
    assert tokenizer.with_options(inputs="native").encode_inputs("the") == [2, 5, 0]
    layout = tokenizer.row_layout([2, 5, 4, 7, 3])
    assert (list(layout.positions), layout.prefix) == ([0, 1, 2, 3, 4], 5)
    # The training code lowers whole words, the later class letter by letter.
    assert tokenizer.encode("ΟΔΟΣ", specials=True) == [WORDS.index("οδος")]
    hub = tokenizer.with_options(reading="hub")
    assert hub.encode("ΟΔΟΣ", specials=True) == [1]
    assert hub.encode("<|STARTOFPIECE|>[MASK]", specials=True) == [size, 4]
    assert size not in tokenizer.encode("<|STARTOFPIECE|>", specials=True)
    ids = [*tokenizer.encode("the fox , foxes !"), 4, size]
    assert tokenizer.decode(ids, skip_specials=False) == "the fox, foxes! [MASK] <|startofpiece|>"
    assert tokenizer.decode(ids) == "the fox, foxes!"
    native = tokenizer.with_options(writing="native")
    assert native.decode(ids, skip_specials=False) == "the fox , foxes ! [MASK] <|startofpiece|>"
    assert native.decode([size, WORDS.index("##es")], skip_specials=False) == "<|startofpiece|>es"


def test_bytes(tmp_path: Path) -> None:
    tokenizer = made("gpt2", tmp_path)
    size = tokenizer.model.size
    plain = tokenizer.encode("a [MASK] b")
    assert max(plain) < size
    marked = [*tokenizer.encode("a"), size + 3, *tokenizer.encode(" b")]
    assert tokenizer.encode("a [MASK] b", specials=True) == marked
    both = tokenizer.with_options(reading="hub")
    assert both.encode("a [MASK] b", specials=True) == [*tokenizer.encode("a"), size + 3, *tokenizer.encode("b")]
    none = tokenizer.with_options(reading="hub-4.44")
    assert none.encode("a [MASK] b", specials=True) == [*tokenizer.encode("a "), size + 3, *tokenizer.encode(" b")]
    assert tokenizer.encode(" \n", specials=True) == []
    assert tokenizer.encode(" \n") == both.encode(" \n", specials=True) != []
    assert tokenizer.decode(marked, skip_specials=False) == "a [MASK]  b"
    assert tokenizer.with_options(writing="native").decode(marked, skip_specials=False) == "a[MASK] b"
    assert streamed(tokenizer, [*tokenizer.encode("鑫")[:2], size + 3]) == "\ufffd [MASK]"
    with pytest.raises(TokenizerError, match="one text only"):
        tokenizer.encode_inputs("a", "b")


def test_roberta(tmp_path: Path) -> None:
    tokenizer = made("roberta", tmp_path)
    mask = tokenizer.model.find("<mask>")
    assert mask is not None
    assert (tokenizer.pad_id, tokenizer.with_options(inputs="native").pad_id) == (1, 2)
    assert tokenizer.encode(" [MASK]<mask>", specials=True)[0] == mask
    assert tokenizer.with_options(reading="hub").encode(" <mask>[MASK]", specials=True)[0] == mask
    assert tokenizer.encode("<s></s>") == tokenizer.encode("<s></s>", specials=True)
    assert not {0, 1, 2, 3} & set(tokenizer.encode("<s></s><pad><unk>"))
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert tokenizer.encode_inputs("a", "b") == [0, *a, 2, 2, *b, 2]


def test_chinese(tmp_path: Path) -> None:
    tokenizer = made("chinese", tmp_path)
    size = tokenizer.model.size
    special = tokenizer.special
    assert (special.eos, special.cls, special.mask, special.sop, special.gmask) == (
        size, size + 2, size + 3, size + 6, size + 9
    )  # fmt: skip
    text, hub = "学而 [gMASK] [UNUSED1]", tokenizer.with_options(reading="hub")
    assert tokenizer.encode(text, specials=True)[-1] < size
    assert hub.encode(text, specials=True)[-1] == size + 4
    assert (tokenizer.token_to_id("[UNK]"), hub.token_to_id("[UNK]")) == (size + 4, 0)
    written = tokenizer.decode(tokenizer.encode("学而 [gMASK] 时习", specials=True), skip_specials=False)
    assert written == "学而 [gMASK] 时习"


def test_names_in_front(tmp_path: Path) -> None:
    entries, merges = files("gpt2").values()
    (tmp_path / "gpt2-vocab.json").write_bytes(entries)
    with pytest.raises(TokenizerError, match=r"gpt2-merges\.txt: no such file; copy it from the published model"):
        load_tokenizer(tmp_path, None)
    (tmp_path / "gpt2-merges.txt").write_bytes(merges)
    tokenizer = load_tokenizer(tmp_path, None)
    assert tokenizer is not None
    tokenizer.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["merges.txt", "vocab.json"]
    (tmp_path / "tokenizer_config.json").write_text("{}")
    again = load_tokenizer(tmp_path, None)
    assert again is not None
    again.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer_config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", POINTER, "a git-lfs pointer, not the file itself"),
        ("vocab.txt", b"\xff\xfe", "not UTF-8 text at byte 0"),
        ("vocab.txt", b"", "the file is empty"),
        ("cog-pretrain.model", b"<html>", "a web page"),
        ("vocab.json", b"{}", "no such file"),
    ],
)
def test_damaged_directories(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path, None)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_chatglm, load_130b])
def test_the_wrong_model(tmp_path: Path, load: object) -> None:
    """A SentencePiece model without this family's pieces gets them behind its own; a text file is refused."""
    config = GLMConfig(vocab_size=150528, hidden_size=8, num_layers=1, num_heads=1)
    (tmp_path / "ice_text.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match=r"ice_text\.model: not a SentencePiece model"):
        load(tmp_path, config)  # type: ignore[operator]


def test_a_small_ice_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "ice_text.model").write_bytes(sentencepiece_bytes(fallback=False))
    tokenizer = load_chatglm(tmp_path, None)
    assert tokenizer is not None
    size = tokenizer.token_to_id("[MASK]")
    assert size is not None
    assert tokenizer.special.gmask == size + 1
    assert tokenizer.encode("the\n 鑫  [gMASK]") == tokenizer.encode("the\n 鑫  [gMASK]", specials=True)
    assert tokenizer.decode(tokenizer.encode("the\n鑫  [gMASK] , x")) == "the\n鑫  [gMASK], x"
    ids = tokenizer.encode("the  [MASK]  fox", specials=True)
    assert ids == [*tokenizer.encode("the"), size, *tokenizer.encode("fox")]
    layout = tokenizer.row_layout([9, size, 9, *tokenizer.build_inputs([], [7, 8])])
    assert list(layout.positions) == [0, 1, 2, 3, 1, 1, 1, 1]
    assert list(layout.blocks) == [0, 0, 0, 0, 1, 2, 3, 4]
    assert layout.prefix == 4
    assert list(tokenizer.row_layout([9, 9]).positions) == [0, 1]


def test_a_small_130b_vocabulary(tmp_path: Path) -> None:
    """Parts around masks are encoded one by one; the end closes an open text."""
    (tmp_path / "ice_text.model").write_bytes(sentencepiece_bytes(fallback=False))
    tokenizer = load_130b(tmp_path, None)
    assert tokenizer is not None
    special = tokenizer.special
    mask, gmask, sop, eop = special.mask, special.gmask, special.sop, special.eop
    the, fox = tokenizer.encode("the"), tokenizer.encode("fox")
    assert tokenizer.encode("the[MASK]fox[gMASK]", specials=True) == [*the, mask, *fox, gmask]
    assert tokenizer.encode_inputs("the") == [*the, gmask, sop]
    row = tokenizer.build_inputs([*the, mask, *fox], [7, 8])
    assert row == [*the, mask, *fox, special.eos, sop, 7, 8, eop]
    layout = tokenizer.row_layout(row)
    start = row.index(sop)
    assert list(layout.positions) == [*range(start), *[len(the)] * (len(row) - start)]
    assert layout.prefix == start
