"""Small models of every kind a server may hold, with vocabularies made on the spot, and one of the demo's size."""

import tempfile
from pathlib import Path
from typing import Any

from glmkit.families.family import family_named
from glmkit.loading import Parts
from glmkit.model import GLM, init_weights
from glmkit.session import LM
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.trained import TrainedTokenizer
from glmkit.tokenizer.training import train_tokenizer
from support.chat import chat_model
from support.tiny import tiny_config
from tokenizer.small_vocabularies import sentencepiece_bytes
from tokenizer.tiny_ranks import rank_file

# family -> (file name, its bytes) of a small vocabulary that the family's own reader accepts
_FILES = {
    "chatglm": ("ice_text.model", lambda: sentencepiece_bytes(fallback=False)),
    "chatglm2": ("tokenizer.model", lambda: sentencepiece_bytes(rule="identity")),
    "chatglm3": ("tokenizer.model", lambda: sentencepiece_bytes(rule="identity")),
    "glm-4": ("tokenizer.model", lambda: rank_file(alphabet='abcdefghijklmnopqrstuvwxyz {}":,\n中')),
}
CHAT_FAMILIES = tuple(_FILES)
# Weights with which different prompts get different, varied answers.
_CHOSEN: dict[str, dict[str, Any]] = {"chatglm": {"seed": 1, "init_std": 0.6}}


def small_chat(family: str, **changes: Any) -> LM:
    """A random chat model of two layers; its greedy replies seldom end by themselves."""
    name, content = _FILES[family]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(content())
        tokenizer = family_named(family).tokenizer(Path(folder), None)
    assert isinstance(tokenizer, InputTokenizer)
    return chat_model(family, tokenizer, **{**_CHOSEN.get(family, {}), **changes})


def _blank_filler(tokenizer: TrainedTokenizer, seed: int = 1, **axes: Any) -> LM:
    config = tiny_config(vocab_size=tokenizer.vocab_size + 6, special=tokenizer.special, **axes)
    model = GLM(config)
    init_weights(model, config, seed)
    return LM(Parts(Path("base"), config, model.eval(), tokenizer, family=family_named("glm")))


def small_base(**changes: Any) -> LM:
    """A base GLM: it continues and fills, and was not taught to chat."""
    texts = ["The quick brown fox.\n", "凯旋门是为纪念胜利而建的，位于巴黎。"]
    tokenizer = train_tokenizer([text * 20 for text in texts], vocab_size=290)
    return _blank_filler(tokenizer, **{"init_std": 0.3, "max_positions": 512, **changes})


def demo_size(**changes: Any) -> LM:
    """The network of `glm demo` with random weights, and a vocabulary of the same kind and size.

    The weights are large enough that different prompts get different answers.
    """
    folder = Path(tempfile.__file__).parent
    texts = [path.read_text(errors="replace") for path in sorted(folder.glob("*.py"))[:60]]
    tokenizer = train_tokenizer(texts, vocab_size=4096)
    axes: dict[str, Any] = {"hidden_size": 192, "num_layers": 4, "num_heads": 3, "positions": "rope_2d"}
    return _blank_filler(tokenizer, **{**axes, "init_std": 0.15, "max_positions": 128, **changes})
