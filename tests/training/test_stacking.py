"""Weights in few arrays: there and back, with the same gradients and updates."""

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.lm import Lm
from moshi_mlx.training.losses import Batch, LossConfig, loss_scales, objective, prepare
from moshi_mlx.training.optimizers import OptimConfig, Optimizers, orthogonalized
from moshi_mlx.training.sharing import copied, shared_groups, summed
from moshi_mlx.training.stacking import Stacking
from moshi_mlx.trees import Tree, flat
from recipes.nano import tts


@pytest.fixture(scope="module")
def lm() -> Lm:
    mx.random.seed(0)
    return Lm(tts.lm_config())


def test_a_tree_comes_back(lm: Lm) -> None:
    parameters = lm.trainable_parameters()
    stacking = Stacking(parameters)
    stacks = stacking.stacked(parameters)
    assert len(stacks) < 12 < len(flat(parameters))
    again = flat(stacking.tree(stacks))
    assert list(again) == list(flat(parameters))
    for name, array in flat(parameters).items():
        assert mx.array_equal(array, again[name]), name


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 5, 8)])
def test_a_stack_is_made_orthogonal_matrix_by_matrix(shape: tuple[int, ...]) -> None:
    stack = mx.random.normal(shape, key=mx.random.key(1))
    alone = mx.stack([orthogonalized(matrix) for matrix in stack])
    assert np.allclose(orthogonalized(stack), alone, atol=1e-5)


def test_an_update_is_that_of_the_single_arrays(lm: Lm) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 400, (1, 9, 6)).astype(np.int32)
    loss = LossConfig()
    batch, counts = prepare(Batch(codes=codes), lm.config, loss, rng)
    scales = mx.array(loss_scales(counts, loss).astype(np.float32))
    parameters = lm.trainable_parameters()
    groups = shared_groups(parameters)
    assert groups
    stacking = Stacking(parameters)
    stacks = stacking.stacked(parameters)

    def of_tree(tree: Tree) -> mx.array:
        lm.update(tree)
        return objective(lm, scales, *batch)[0]

    single = summed(mx.grad(of_tree)(parameters), groups)
    stacked = mx.grad(lambda arrays: of_tree(stacking.tree(arrays)))(stacks)
    config = OptimConfig(name="muon", lr=1e-2, muon_lr=1e-2)
    one, few = Optimizers(config, parameters), Optimizers(config, stacks)
    wanted = flat(copied(one.apply(parameters, single), groups))
    found = flat(stacking.tree(few.apply(stacks, stacked)))
    lm.update(parameters)
    for name, array in wanted.items():
        assert np.allclose(found[name], array, atol=2e-4), name
        assert not np.allclose(found[name], flat(parameters)[name], atol=2e-4), name
