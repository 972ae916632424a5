"""GLM (2021-2022): base, large, 410M, 515M, RoBERTa, 2B, 10B and the Chinese models.

Shapes from `THUDM/GLM:config_tasks/model_*.sh` and `THUDM/GLM:config/*.sh`; the parameter counts that follow from
them are checked by a test.
"""

from glmkit.config import GLMConfig

from .base import Family


def _shape(layers: int, width: int, heads: int, positions: int, vocabulary: int) -> GLMConfig:
    return GLMConfig(
        family="glm",
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        max_positions=positions,
        vocab_size=vocabulary,
        embedding_dropout=0.1,
        attention_dropout=0.1,
        hidden_dropout=0.1,
    )


FAMILY = Family(
    name="glm",
    title="GLM",
    presets={
        "glm-base": _shape(12, 768, 12, 512, 30592),
        "glm-large": _shape(24, 1024, 16, 512, 30592),
        "glm-410m": _shape(30, 1024, 16, 512, 30592),
        "glm-515m": _shape(30, 1152, 18, 512, 30592),
        "glm-roberta": _shape(24, 1024, 16, 512, 50304),
        "glm-2b": _shape(36, 2048, 32, 1024, 50304),
        "glm-10b": _shape(48, 4096, 64, 1024, 50304),
        "glm-large-chinese": _shape(24, 1024, 16, 1024, 50048),
        "glm-10b-chinese": _shape(48, 4096, 64, 1024, 50048),
    },
)
