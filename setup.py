"""The part of the build that pyproject.toml cannot say: `recipes/` is shipped as package data of glmkit."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "glmkit.recipes", "glmkit.recipes.pretrain"],
    package_dir={"": "src", "glmkit.recipes": "recipes"},
    package_data={"glmkit": ["py.typed"], "glmkit.recipes.pretrain": ["*.yaml"]},
)
