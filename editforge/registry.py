"""What a method of your own registers with, see docs/extending.md; it is made in `recipe.registry`."""

from editforge.recipe.registry import register

__all__ = ["register"]
