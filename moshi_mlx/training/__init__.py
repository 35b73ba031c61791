"""Training: data, losses, optimizers, the trainer, adapters, for the models of moshi_mlx.

Nothing of moshi_mlx outside this package imports it.
"""
