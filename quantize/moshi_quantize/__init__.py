"""Converts and quantizes Moshi checkpoints, and measures what that costs.

Imports moshi_mlx, never the app. `quantize` does it all; the rest are its parts.
"""

from .api import Result, quantize
from .recipe import RECIPES, Layer, Precision, Recipe, RecipeError, recipe

__all__ = [
    "RECIPES",
    "Layer",
    "Precision",
    "Recipe",
    "RecipeError",
    "Result",
    "quantize",
    "recipe",
]
