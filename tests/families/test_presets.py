"""Published sizes: exact parameter counts on the meta device."""

import pytest
import torch

from glmkit.errors import ConfigError
from glmkit.families.family import preset, preset_names
from glmkit.model import GLM

# From the published shapes: L(12h^2 + 13h) + Vh + 2(P+1)h + 2h for GLM, the gated and grouped forms for the others.
PARAMETERS = {
    "glm-base": 109_338_624,
    "glm-large": 334_688_256,
    "glm-410m": 410_265_600,
    "glm-515m": 514_632_960,
    "glm-roberta": 354_873_344,
    "glm-2b": 1_920_122_880,
    "glm-10b": 9_880_682_496,
    "glm-large-chinese": 355_659_776,
    "glm-10b-chinese": 9_879_633_920,
    "glm-130b": 128_697_794_560,
    "chatglm-6b": 6_173_286_400,  # the stored second copy of the embedding is not counted
    "chatglm-6b-v0": 6_173_286_400 + 20_000 * 4096,
    "chatglm2-6b": 6_243_584_000,
    "chatglm3-6b": 6_243_584_000,
    "chatglm2-6b-32k": 6_243_584_000,
    "chatglm3-6b-32k": 6_243_584_000,
    "chatglm3-6b-128k": 6_243_584_000,
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-chat": 9_399_951_360,
    "glm-4-9b-chat-1m": 9_483_857_920,
}


def test_every_preset_is_counted() -> None:
    assert set(preset_names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    with torch.device("meta"):
        model = GLM(preset(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_unknown_preset_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="glm-large"):
        preset("glm-larg")
