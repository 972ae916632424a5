"""Small vocabularies in the published file formats, made on the spot."""

import io
import json
from functools import cache

import sentencepiece
import tokenizers

from glmkit.tokenizer.byte_tokens import byte_alphabet
from tokenizer.trained import CHINESE, CODE, ENGLISH

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "fox", "##es", "jump", "##s", "un", "##aff"]
WORDS += ["##able", ",", ".", "!", "'", "中", "文", "e", "cafe", "##e", "[", "]", "σ", "ς", "οδος"]
SENTENCES = [line for line in (CODE + CHINESE + ENGLISH).splitlines() if line.strip()] * 4


@cache
def sentencepiece_bytes(kind: str = "unigram", *, fallback: bool = True, rule: str = "nmt_nfkc") -> bytes:
    """A SentencePiece model; with rule "identity" it keeps extra white space, as the later ChatGLM's does."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES),
        model_writer=file,
        model_type=kind,
        vocab_size=450 if fallback else 190,
        byte_fallback=fallback,
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
        user_defined_symbols=["<n>"],
        control_symbols=["<pad>"],
        character_coverage=0.99,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return file.getvalue()


@cache
def bpe_texts() -> tuple[str, str]:
    """A vocab.json and a merges.txt of GPT-2's kind, with <|endoftext|> as the last entry."""
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(byte_alphabet()), show_progress=False
    )
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.train_from_iterator(SENTENCES, trainer)
    content = json.loads(model.to_str())["model"]
    entries = content["vocab"] | {"<|endoftext|>": len(content["vocab"])}
    return json.dumps(entries), "\n".join(["#version: 0.2", *map(" ".join, content["merges"])]) + "\n"
