"""What is fed to a model while it generates."""

from typing import Any

import pytest
import torch

from glmkit.model import GLM


class Fed:
    """Ids and positions of everything that is fed to a model, call by call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[list[int]] = []
        self.places: list[list[list[int]]] = []
        hidden = GLM.hidden

        def record(model: GLM, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            self.ids.append(input_ids[0].tolist())
            self.places.append(options["position_ids"][0].tolist())
            return hidden(model, input_ids, **options)

        monkeypatch.setattr(GLM, "hidden", record)
