"""GLM-130B: one-stream rotary positions, DeepNorm, GEGLU.

Source: `THUDM/GLM-130B:configs/model_glm_130b.sh`, paper Table 11.
"""

from glmkit.config import GLMConfig

from .base import Family

FAMILY = Family(
    name="glm-130b",
    title="GLM-130B",
    presets={
        "glm-130b": GLMConfig(
            family="glm-130b",
            num_layers=70,
            hidden_size=12288,
            num_heads=96,
            ffn_size=32768,
            vocab_size=150528,
            max_positions=2048,
            positions="rope",
            residual="deepnorm",
            mlp="geglu",
            gelu="erf",
            init="xavier",
            init_std=0.0052,
            embedding_gradient_scale=0.1,
            embedding_dropout=0.1,
            attention_dropout=0.1,
            hidden_dropout=0.1,
        ),
    },
)
