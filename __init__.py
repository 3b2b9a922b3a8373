"""camelid: a LLaMA from raw text to an assistant, in JAX.

import camelid
m = camelid.load("runs/quickstart/sft")
print(m.chat("Where does the fox live?"))
"""

import importlib

_PUBLIC = {
    "load": ".checkpoints.language_model",
    "LanguageModel": ".checkpoints.language_model",
    "load_reward": ".rlhf.reward_model",
    "RewardModel": ".rlhf.reward_model",
    "LlamaConfig": ".model.config",
    "Tokenizer": ".data.tokenizer",
}
__all__ = list(_PUBLIC)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name not in _PUBLIC:  # `import camelid` stays instant: JAX is imported with the first name that needs it
        raise AttributeError(f"module 'camelid' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
