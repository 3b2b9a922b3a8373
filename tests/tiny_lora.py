"""The adapters that tiny runs are tuned with, by name."""

TARGETS = [(r"layers/(attention|mlp)/.*", 4)]
OPTIONS = {
    "lora": {},
    "dora": {"dora": True, "rank_stabilized": True},
    "pissa": {"init": "pissa", "dropout": 0.1},
    "nf4": {"quantize": "nf4"},
    "int8": {"quantize": "int8", "whole": [r".*norm/scale"]},
}


def put_adapters(c, name: str) -> None:
    """Sets `c.lora` to the adapters called `name`; none for an empty name."""
    if not name:
        return
    c.lora.targets = TARGETS
    for option, value in OPTIONS[name].items():
        c.lora[option] = value
    c.optim.weight_decay = 0.0
