"""Batches made in other processes."""

import numpy as np
import pytest

from moshi_mlx.training.ahead import Ahead
from moshi_mlx.training.losses import Batch


class Numbered:
    """Batches that say their number; number 13 cannot be made."""

    def batch(self, index: int) -> Batch:
        if index == 13:
            raise ValueError("no batch 13")
        return Batch(codes=np.full((1, 2, 3), index, np.int32))


def test_batches_are_those_of_the_dataset_in_any_order() -> None:
    with Ahead(Numbered(), 2, ahead=3) as ahead:
        for index in (0, 1, 2, 7, 8, 3):
            assert (ahead.batch(index).codes == index).all()


def test_what_a_dataset_raises_comes_with_its_batch() -> None:
    with Ahead(Numbered(), 1) as ahead:
        assert ahead.batch(12).codes[0, 0, 0] == 12
        with pytest.raises(ValueError, match="no batch 13"):
            ahead.batch(13)
        assert ahead.batch(14).codes[0, 0, 0] == 14
