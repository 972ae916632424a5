"""The layout that glmkit itself writes: our names, unfused, the same for every family."""

from collections.abc import Mapping

from glmkit.config import GLMConfig
from glmkit.errors import ConfigError

from .layout import Alias, Extras, Layout, Published, Rule

FORMAT = 1
FORMAT_KEY = "glmkit_format"
MODEL_TYPE = "glmkit"
TYPE_KEY = "model_type"  # by which transformers finds the classes of `glmkit.hf`
NAME_KEY = "published_name"  # what the published config called its model, for a conversion back


def _read(values: Mapping[str, object]) -> Published:
    version = values.get(FORMAT_KEY)
    if type(version) is not int or version != FORMAT:
        raise ConfigError(
            f"config.json has format {version!r}, this glmkit reads {FORMAT}", step="use the version that wrote it"
        )
    fields = {key: value for key, value in values.items() if key not in (FORMAT_KEY, NAME_KEY, TYPE_KEY)}
    name = values.get(NAME_KEY)
    if not isinstance(name, str | None):
        raise ConfigError(f"config.json: {NAME_KEY} is {name!r}; it must be a text", param=NAME_KEY)
    return Published(GLMConfig.from_dict(fields, source="config.json"), name=name)


def _write(config: GLMConfig, extras: Extras) -> dict[str, object]:
    return own_values(config)


def own_values(config: GLMConfig) -> dict[str, object]:
    """The content of config.json in our own format."""
    return {FORMAT_KEY: FORMAT, TYPE_KEY: MODEL_TYPE, **config.to_dict()}


_TABLES = ("model.embed_tokens", "model.embed_positions", "model.embed_block_positions")
_NORMS = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
_LINEARS = (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
_LAYER = "model.layers.{i}"

OWN = Layout(
    name="glmkit",
    container="huggingface",
    rules=(
        *(Rule(name, (name,), ("weight",), "table") for name in _TABLES),
        *(Rule(f"{_LAYER}.{name}", (f"{_LAYER}.{name}",), kind="vector") for name in _NORMS),
        *(Rule(f"{_LAYER}.{name}", (f"{_LAYER}.{name}",)) for name in _LINEARS),
        Rule("model.norm", ("model.norm",), kind="vector"),
    ),
    aliases=(Alias("lm_head", stored=False),),
    wrappers=(),
    quantized=True,
    scale_blocks=True,
    read_config=_read,
    write_config=_write,
)
