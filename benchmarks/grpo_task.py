"""The settings and the reward of the step in `grpo_compare.py`. Imports nothing: the sides have other packages.

A word of a text is the number of its token, so that every token has a text and the sides need no tokenizer of a model.
"""

SHAPE = "nano-1m"  # preset of policy and reference
PROMPTS = 8  # prompts per step
ANSWERS = 8  # answers to each prompt
PROMPT = 24  # tokens of a prompt
ANSWER = 32  # tokens of every answer: nothing ends an answer early
TEMPERATURE = 1.0
CLIP = 0.2
KL_COEF = 0.04  # of the estimator k3, in the loss
LR = 1e-5
B1 = 0.9
B2 = 0.999
EPS = 1e-8


def decode(tokens: list[int]) -> str:
    """The text of tokens."""
    return " ".join(map(str, tokens))


def encode(text: str) -> list[int]:
    """The tokens of a text."""
    return [int(word) for word in text.split()]


def reward(answer: str) -> float:
    """The share of even tokens in an answer."""
    tokens = encode(answer)
    return sum(token % 2 == 0 for token in tokens) / len(tokens)
