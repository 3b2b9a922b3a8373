"""The settings of the PPO iteration in `ppo_compare.py`. Imports nothing, because both sides have other packages."""

SHAPE = "nano-1m"  # preset of policy, reference, reward model and critic, which are separate networks
PROMPTS = 64  # prompts per iteration, with one answer each
PROMPT = 24  # tokens of a prompt
ANSWER = 32  # tokens of every answer: nothing ends an answer early
TEMPERATURE = 1.0
EPOCHS = 2
MINIBATCHES = 4
CLIP = 0.2
VALUE_CLIP = 0.2
VALUE_COEF = 0.1
GAMMA = 1.0
LAM = 0.95
KL_COEF = 0.05
LR = 1e-5
