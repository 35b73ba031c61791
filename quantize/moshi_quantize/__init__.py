"""Converts and quantizes Moshi checkpoints, and measures what that costs.

Imports moshi_mlx, never the app. `quantize` does it all; the rest are its parts. Each is imported
when it is asked for: the program starts, and says what is wrong, where MLX or moshi_mlx cannot be
imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Result, quantize
    from .recipes import RECIPES, Layer, Precision, Recipe, RecipeError, recipe

_PARTS = {
    "RECIPES": "recipes",
    "Layer": "recipes",
    "Precision": "recipes",
    "Recipe": "recipes",
    "RecipeError": "recipes",
    "Result": "api",
    "quantize": "api",
    "recipe": "recipes",
}

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


def __getattr__(name: str) -> Any:
    """A part, imported now."""
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PARTS[name]}", __name__), name)
