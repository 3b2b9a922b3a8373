"""Reads tables of words and phrases: TOML files beside the modules that use them."""

import tomllib
from importlib import resources


def read_table(package: str, file: str) -> dict:
    """The contents of a TOML file in a package, which may be a folder or a zip archive."""
    return tomllib.loads((resources.files(package) / file).read_text("utf-8"))
