"""Tokenizer and conversations of ChatGLM2-6B.

Sources: `THUDM/chatglm2-6b:tokenization_chatglm.py` and `THUDM/chatglm2-6b:modeling_chatglm.py`.
"""

from pathlib import Path

from glmkit.config import GLMConfig
from glmkit.tokenizer.chat_template import ChatDefaults

from .common.command_tokenizer import COMMANDS, TOKENIZER_FILES, CommandTokenizer, load_commands
from .common.round_chat import RoundTemplate

__all__ = ["CHAT", "TOKENIZER_FILES", "load_tokenizer"]


def load_tokenizer(directory: Path, config: GLMConfig | None) -> CommandTokenizer | None:
    """The tokenizer of a published directory, None when `tokenizer.model` is absent. Raises TokenizerError."""
    return load_commands(directory, config, COMMANDS)


CHAT = RoundTemplate(
    name="ChatGLM2-6B",
    defaults=ChatDefaults(max_length=8192, temperature=0.8, top_p=0.8),
    end="eos",
    first=1,
    gap="\n\n",
)
