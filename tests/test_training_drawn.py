"""A drawn position is an int that carries its weight through pickles, copies and data loaders."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from gracekit.training.drawn import Drawn


class Weights(Dataset[torch.Tensor]):
    """Gives what it is asked for: the position and the weight."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.tensor([index, index.weight], dtype=torch.float64)


def test_it_is_the_int_that_it_stands_for() -> None:
    drawn = Drawn(3, 1.5)
    assert drawn == 3 and hash(drawn) == hash(3) and ["a", "b", "c", "d"][drawn] == "d"
    assert drawn.weight == 1.5 and Drawn(3).weight == 1.0


def test_copies_and_pickles_keep_the_weight() -> None:
    for twin in (
        copy.copy(Drawn(3, 1.5)),
        copy.deepcopy(Drawn(3, 1.5)),
        *(pickle.loads(pickle.dumps(Drawn(3, 1.5), protocol)) for protocol in range(2, 6)),
    ):
        assert type(twin) is Drawn and (twin, twin.weight) == (3, 1.5)


def test_it_reaches_the_workers_of_a_data_loader() -> None:
    order = [Drawn(4, 0.5), Drawn(1, 2.0), Drawn(4, 0.25)]
    loader = DataLoader(Weights(), batch_size=2, sampler=order, num_workers=1)
    assert torch.cat(list(loader)).tolist() == [[4, 0.5], [1, 2.0], [4, 0.25]]
