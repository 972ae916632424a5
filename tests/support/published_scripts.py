"""Model directories as old scripts meet them: real vocabularies, random weights, code that must not run."""

import atexit
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.native import write_model
from glmkit.config import GLMConfig
from glmkit.families.family import preset
from glmkit.model import GLM, init_weights
from support.shared import shared_dir

SMALL: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "ffn_size": 128}
GROUPED: dict[str, Any] = {**SMALL, "head_size": 16, "num_kv_heads": 2}
# name -> preset, changed sizes, folder of the vocabulary, its files (there -> here), class, what its settings add
RELEASES: dict[str, tuple[str, dict[str, Any], str, dict[str, str], str, dict[str, Any]]] = {
    "chatglm-6b": (
        "chatglm-6b", SMALL, "chatglm-6b", {"ice_text.model": "ice_text.model"}, "ChatGLMTokenizer",
        {"num_image_tokens": 0, "do_lower_case": False, "remove_space": False},
    ),
    "chatglm-6b-v0": (
        "chatglm-6b-v0", SMALL, "chatglm-6b", {"ice_text.model": "ice_text.model"}, "ChatGLMTokenizer",
        {"num_image_tokens": 20000, "do_lower_case": False, "remove_space": False},
    ),
    "chatglm2-6b": (
        "chatglm2-6b", GROUPED, "chatglm2-chatglm3", {"tokenizer.model": "tokenizer.model"}, "ChatGLMTokenizer", {},
    ),
    "chatglm3-6b": (
        "chatglm3-6b", GROUPED, "chatglm2-chatglm3", {"tokenizer.model": "tokenizer.model"}, "ChatGLMTokenizer", {},
    ),
    "glm-4-9b-chat": (
        "glm-4-9b-chat", GROUPED, "glm4", {"tokenizer.model": "tokenizer.model"}, "ChatGLM4Tokenizer", {},
    ),
    "glm-large-chinese": (
        "glm-large-chinese", {key: SMALL[key] for key in ("hidden_size", "num_layers", "num_heads")},
        "glm-chinese", {"cog-pretrain.model": "cog-pretrain.model"}, "GLMChineseTokenizer", {},
    ),
    "glm-10b": (
        "glm-10b", {key: SMALL[key] for key in ("hidden_size", "num_layers", "num_heads")},
        "glm-english", {"gpt2-vocab.json": "vocab.json", "gpt2-merges.txt": "merges.txt"}, "GLMGPT2Tokenizer", {},
    ),
}  # fmt: skip
CODE = ("tokenization", "modeling", "configuration", "quantization")


@cache
def release(name: str, dtype: str = "float16") -> Path:
    """The directory of a release, made once a process. Tests that change it copy it first."""
    folder = Path(mkdtemp(prefix="release-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    named, sizes, vocabulary, files, kind, settings = RELEASES[name]
    config = replace(preset(named), **sizes)
    _write_weights(folder / "own", config)
    (folder / "THUDM").mkdir()
    convert(folder / "own", folder / "THUDM" / name, to="huggingface", dtype=dtype)
    shutil.rmtree(folder / "own")
    made = folder / "THUDM" / name
    for theirs, ours in files.items():
        shutil.copy(shared_dir("tokenizers", vocabulary) / theirs, made / ours)
    suffix = "glm" if kind.startswith("GLM") else "chatglm"
    auto = {"AutoTokenizer": [f"tokenization_{suffix}.{kind}", None]}
    values = {"name_or_path": f"THUDM/{name}", "tokenizer_class": kind, "auto_map": auto, **settings}
    (made / "tokenizer_config.json").write_text(json.dumps(values))
    for code in CODE:
        (made / f"{code}_{suffix}.py").write_text("raise RuntimeError('code of a model directory was executed')\n")
    return made


def _write_weights(folder: Path, config: GLMConfig) -> None:
    model = GLM(config)
    init_weights(model, config, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # so that answers are not all the same token
            if config.tie_embeddings and name == "model.norm.weight":
                parameter[::2] *= -1  # or a word table that is the head would say again what it read
            if config.residual == "deepnorm" and name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(32)  # so that the whole text counts, not the last token alone
    folder.mkdir(parents=True)
    write_model(folder, config, dict(model.named_parameters()))
