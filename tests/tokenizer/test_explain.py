"""Tables of tokens."""

from pathlib import Path

from glmkit.families.glm_text import load_tokenizer
from tokenizer.small_vocabularies import WORDS, bpe_texts, sentencepiece_bytes
from tokenizer.trained import trained


def test_every_token_has_a_line(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = load_tokenizer(tmp_path, None)
    assert tokenizer is not None
    told = tokenizer.explain("The foxes, [MASK] x")
    assert [(t.id, t.token, t.text, t.kind) for t in told] == [
        (5, "the", "the", "text"),
        (7, "fox", " fox", "text"),
        (8, "##es", "es", "text"),
        (14, ",", " ,", "text"),
        (4, "[MASK]", " [MASK]", "special"),
        (1, "[UNK]", " [UNK]", "special"),
    ]
    assert str(told) == "\n".join(
        [
            "#  id  kind     token   text",
            "0   5  text     the     the",
            "1   7  text     fox     ␣fox",
            "2   8  text     ##es    es",
            "3  14  text     ,       ␣,",
            "4   4  special  [MASK]  ␣[MASK]",
            "5   1  special  [UNK]   ␣[UNK]",
        ]
    )
    assert [t.kind for t in tokenizer.explain("[MASK]", specials=False)] == ["text", "special", "text"]


def test_parts_of_characters(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(bpe_texts()[0], encoding="utf-8")
    (tmp_path / "merges.txt").write_text(bpe_texts()[1], encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path, None)
    assert tokenizer is not None
    told = tokenizer.explain("鑫 [dBLOCK]\n")
    assert [t.kind for t in told if t.text != " "] == ["byte", "byte", "byte", "special", "text"]
    assert "".join(t.text for t in told) == tokenizer.decode([t.id for t in told], skip_specials=False)
    assert (told[0].text, told[2].text) == ("", "鑫")
    assert "\\n" in str(told)


def test_special_ids_behind_a_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "cog-pretrain.model").write_bytes(sentencepiece_bytes())
    tokenizer = load_tokenizer(tmp_path, None, reading="hub")
    assert tokenizer is not None
    told = tokenizer.explain("the [gMASK] [UNUSED1] 鑫")
    assert [t.kind for t in told if t.id >= tokenizer.model.size] == ["special", "special"]
    assert [t.kind for t in told if t.token.startswith("<0x")] == ["byte"] * 3


def test_trained_tokenizers_explain_too() -> None:
    tokenizer = trained("bpe")
    told = tokenizer.explain("a [MASK] 鑫")
    assert [t.kind for t in told] == ["text", "special", "text", "byte", "byte", "byte"][: len(told)]
    assert "".join(t.text for t in told) == "a[MASK] 鑫"
    assert tokenizer.explain("") == []
