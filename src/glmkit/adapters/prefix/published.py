"""Prefix encoders in published files: the P-Tuning v2 layout and PaddleNLP's, read and written, and PEFT's, read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from glmkit.adapters.adapter_files import PADDLE, AdapterFiles, probability
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError
from glmkit.model.positions import rotary_angles, rotate

from .encoder import PROJECTION, TABLE, PrefixEncoder, build_encoder, prefix_width

MARK = "prefix_encoder."  # in the name of every stored tensor, but for an encoder that was saved alone
# `THUDM/ChatGLM-6B:ptuning/trainer.py` saves the trainable parameters under their names in the model.
PUBLISHED_PREFIX = "transformer.prefix_encoder."
PUBLISHED_DROPOUT = 0.1
PEFT_TYPE = "PREFIX_TUNING"
# `huggingface/peft:src/peft/peft_model.py:get_prompt`. What `save_pretrained` writes is the encoder's output, (length,
# layer, key or value, group, channel) as in THUDM's table; a whole state dict has the encoder itself,
# `prompt_encoder.NAME.embedding` and `.transform`, under whatever wraps it.
_PEFT_TABLE, _PEFT_ENCODER = "prompt_embeddings", "prompt_encoder."

# `PaddlePaddle/PaddleNLP:paddlenlp/peft/prefix/prefix_model.py`: a Sequential, linear weights (in, out).
_PADDLE = dict(zip(("0.weight", "1.weight", "1.bias", "3.weight", "3.bias"), (TABLE, *PROJECTION), strict=True))

# Keys of the settings beside a prefix that say which base it belongs to, and what of ours they must equal.
_BASE_KEYS: tuple[tuple[str, str], ...] = (
    ("num_layers", "num_layers"),
    ("num_hidden_layers", "num_layers"),
    ("num_attention_heads", "num_heads"),
    ("hidden_size", "hidden_size"),
    ("kv_channels", "head_dim"),
    ("head_dim", "head_dim"),
    ("num_key_value_heads", "kv_heads"),
    ("multi_query_group_num", "kv_heads"),
)


def read_prefix(
    files: AdapterFiles, config: GLMConfig, dtype: torch.dtype, *, counted: bool = False
) -> tuple[PrefixEncoder, list[str]]:
    """The encoder and notes on what was decided; `dtype` is the base's.

    counted: whether the base's own code counts the positions of a prefix that PEFT puts in front. Then the text began
    at position P in training, here it begins at 0; keys that are turned back by P steps see it as before.

    The settings beside the file are cross-checked with the shapes; without them the shapes decide. Whether there is a
    projection the weights say, whatever the settings do (published ChatGLM2 prefixes deny it and have it). Raises
    CheckpointError naming both values.
    """
    source, settings = str(files.weights), files.settings or {}
    (_check_peft if files.origin == "peft" else _check_base)(settings, config, source)
    notes = check_settings(files, prefix_width(config), config.hidden_size)
    if files.origin == PADDLE:
        tensors = _from_paddle(files.tensors, config, source)
        dropout = probability(settings, "prefix_dropout", source)
    else:
        tensors = _inside(files)
        dropout = PUBLISHED_DROPOUT if files.origin == "torch" else 0.0
    if counted and files.origin == "peft" and TABLE in tensors:
        steps = len(tensors[TABLE])
        tensors = {
            name: _turned_back(name, tensor, config, steps, PROJECTION[0] in tensors)
            for name, tensor in tensors.items()
        }
        notes.append(f"the base's own code counts the prefix: its keys are turned back by {steps} positions")
    return build_encoder(tensors, config, dropout=dropout, dtype=dtype, source=source), notes


def check_settings(files: AdapterFiles, width: int | None = None, hidden_size: int | None = None) -> list[str]:
    """Notes on what the settings beside a prefix leave open or say differently from its weights.

    width, hidden_size: what a table without and with projection has on the base, where that is known. Raises
    CheckpointError when the settings speak of another length, or of a projection of which only the table is there.
    """
    paddle, tensors, settings, notes = files.origin == PADDLE, _inside(files), files.settings or {}, []
    table = tensors.get("0.weight" if paddle else TABLE)
    if table is None or table.dim() != 2:
        return []  # building the encoder says what is wrong
    length = {"paddle": "num_prefix_tokens", "peft": "num_virtual_tokens", "torch": "pre_seq_len"}[files.origin]
    stated, rows = settings.get(length), len(table)
    if stated is None:
        notes.append(f"no {length} beside {files.weights.name}: the table's {rows} rows decide")
    elif type(stated) is not int or stated != rows:
        raise CheckpointError(
            f"{files.weights}: the table has {rows} rows, the settings say {length} {stated!r}",
            step="copy the settings that were saved with it",
        )
    projected = ("1.weight" if paddle else PROJECTION[0]) in tensors
    claimed = settings.get("prefix_projection")
    if files.origin == "peft":
        if claimed and not projected:
            notes.append("trained with a projection: the file holds what it made, which is the prefix")
        return notes
    if projected and claimed is False:
        notes.append("the settings say prefix_projection false, the weights have one: it is applied")
    elif not projected and claimed and stated is not None:
        if width is not None and (table.shape[1] != width or width == hidden_size):
            raise CheckpointError(
                f"{files.weights} lacks the projection's weights, the settings say prefix_projection {claimed!r}; the "
                f"file is incomplete, copy it again"
            )
        notes.append(f"the settings say prefix_projection {claimed!r}, the weights have none: the table is the prefix")
    return notes


def _inside(files: AdapterFiles) -> dict[str, Tensor]:
    """The tensors under their names inside the encoder."""
    if files.origin != "peft":
        return {name.rpartition(MARK)[2]: tensor for name, tensor in files.tensors.items()}
    inside: dict[str, Tensor] = {}
    for name, tensor in files.tensors.items():
        bare = name.rpartition(_PEFT_ENCODER)[2].partition(".")[2]  # without the adapter's name
        inside[TABLE if name.endswith(_PEFT_TABLE) else bare.replace("transform.", "trans.", 1)] = tensor
    return inside


def _check_peft(settings: Mapping[str, object], config: GLMConfig, source: str) -> None:
    """Compare PEFT's settings, whose heads are those of the keys and values, with the base."""
    wanted = {
        "num_layers": config.num_layers,
        "num_attention_heads": config.kv_heads,
        "token_dim": config.kv_heads * config.head_dim,
        "num_transformer_submodules": 1,
    }
    for key, value in wanted.items():
        if settings.get(key) not in (None, value):
            raise CheckpointError(
                f"{source}: made for a base with {key} {settings[key]!r}, this model's keys and values have {value}",
                step="load it on the base it was trained with",
            )


def paddle_prefix(encoder: PrefixEncoder, config: GLMConfig) -> tuple[dict[str, Tensor], dict[str, object]]:
    """(tensors, `prefix_config.json`) as PaddleNLP keeps them. Raises CheckpointError for widths it cannot have."""
    shared, table = config.kv_heads * config.head_dim, encoder.embedding.embedding_dim
    if encoder.trans is not None and table != shared:
        raise CheckpointError(f"PaddleNLP's projected prefix has a table {shared} wide, this one is {table}")
    if config.hidden_size != config.num_heads * config.head_dim:
        raise CheckpointError(
            f"PaddleNLP's prefix needs heads of hidden_size / num_heads, not {config.head_dim} channels"
        )
    held = {name: tensor.detach() for name, tensor in encoder.state_dict().items()}
    for name in PROJECTION[2:] if encoder.trans is not None else (TABLE,):
        held[name] = _regrouped(held[name], 1 if name == TABLE else 0, config.num_layers, 2)
    tensors = {
        theirs: held[ours].t() if ours.startswith("trans.") and held[ours].dim() == 2 else held[ours]
        for theirs, ours in _PADDLE.items()
        if ours in held
    }
    return tensors, {
        "num_prefix_tokens": encoder.length,
        "num_attention_heads": config.num_heads,
        "multi_query_group_num": None if config.kv_heads == config.num_heads else config.kv_heads,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "prefix_projection": encoder.trans is not None,
        "prefix_projection_hidden_size": None if encoder.trans is None else len(held[PROJECTION[1]]),
        "prefix_dropout": encoder.drop.p,
        "tensor_parallel_degree": -1,
        "dtype": None,
    }


def _check_base(settings: Mapping[str, object], config: GLMConfig, source: str) -> None:
    for key, ours in _BASE_KEYS:
        if key not in settings or settings[key] is None:
            continue
        if key == "multi_query_group_num" and settings.get("multi_query_attention", True) is False:
            continue
        if type(settings[key]) is not int or settings[key] != getattr(config, ours):
            raise CheckpointError(
                f"{source}: made for a base with {key} {settings[key]!r}, this model has {getattr(config, ours)}",
                step="load it on the base it was trained with",
            )


def _from_paddle(tensors: Mapping[str, Tensor], config: GLMConfig, source: str) -> dict[str, Tensor]:
    """Names and shapes as published by THUDM: linears turned to (out, in), [all keys; all values] paired by layer.

    PaddleNLP splits the row in two halves (`paddlenlp/peft/prefix/utils.py`), the remote code in L pairs.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = _PADDLE.get(name.rpartition(MARK)[2])
        if ours is None:
            raise CheckpointError(f"{source}: {name} is no part of a prefix encoder; known: {', '.join(_PADDLE)}")
        renamed[ours] = tensor.t() if ours.startswith("trans.") and tensor.dim() == 2 else tensor
    for name in PROJECTION[2:] if PROJECTION[2] in renamed else (TABLE,):
        axis = 1 if name == TABLE else 0
        if name in renamed and renamed[name].shape[axis] == prefix_width(config):
            renamed[name] = _regrouped(renamed[name], axis, 2, config.num_layers)
    return renamed


def _turned_back(name: str, tensor: Tensor, config: GLMConfig, steps: int, projected: bool) -> Tensor:
    """The tensor with its keys turned by -steps positions; as it is where it makes no keys itself.

    Rotation is linear, so it may be done to the last layer of a projection as well.
    """
    last = PROJECTION[2:] if projected else (TABLE,)
    if name not in last or tensor.shape[1 if name == TABLE else 0] != prefix_width(config):
        return tensor
    rows_NW = (tensor if name == TABLE else tensor.reshape(len(tensor), -1).t()).float()
    items = rows_NW.reshape(len(rows_NW), config.num_layers, 2, config.kv_heads, config.head_dim).clone()
    rotary = rotary_angles(torch.full((1, 2, 1), -steps), config)
    if rotary is not None:
        items[:, :, 0] = rotate(items[:, :, 0], rotary)
    turned = items.flatten(1)
    return turned if name == TABLE else turned.t().reshape(tensor.shape)


def _regrouped(tensor: Tensor, axis: int, groups: int, each: int) -> Tensor:
    """`groups` times `each` equal blocks along `axis`: the first of every group, then the second of every group, ...

    2 groups, the keys and the values of all layers, become keys and values of layer 0, of layer 1, ...; and back.
    """
    return torch.unflatten(tensor, axis, (groups, each, -1)).transpose(axis, axis + 1).flatten(axis, axis + 2)
