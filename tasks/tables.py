"""Tables of words and phrases: TOML files beside the modules that read them."""

import tomllib
from importlib import resources


def read_table(package: str, file: str) -> dict:
    """The contents of a TOML file of a package, installed or not."""
    return tomllib.loads((resources.files(package) / file).read_text("utf-8"))
