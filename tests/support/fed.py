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

    @property
    def row(self) -> list[int]:
        """The ids of all calls, side by side."""
        return [token for ids in self.ids for token in ids]

    @property
    def row_places(self) -> list[tuple[int, int]]:
        """The two places of each token of `row`."""
        return [pair for first, second in self.places for pair in zip(first, second, strict=True)]
