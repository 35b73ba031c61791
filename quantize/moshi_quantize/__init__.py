"""Converts and quantizes Moshi checkpoints. Imports moshi_mlx, never the app."""

from .convert import RECIPES, Recipe, convert, quantized

__all__ = ["RECIPES", "Recipe", "convert", "quantized"]
