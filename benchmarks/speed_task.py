"""The settings of `compare.py`. Imports nothing, because the sides have other packages."""

ROWS = {"nano-8m": (8, 256), "nano-1m": (32, 128)}  # rows and predicted tokens of a row in a training batch, by preset
ROPE_THETA = 1e6  # the base of the rotary frequencies: tunix's Llama3 takes no other
STEPS = 3  # training steps of a round
PROMPT, NEW = 32, 128  # tokens of a prompt, and new tokens, in decoding
LR = 1e-4
B1 = 0.9
B2 = 0.95
EPS = 1e-8
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
