"""Settings of runs: types and ranges of leaves, sections as dataclasses, config files and overrides."""
