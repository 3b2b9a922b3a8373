"""What both sides of `ppo_compare.py` do: the numbers of one iteration of PPO. No imports: each side has its own."""

SHAPE = "nano-1m"  # of policy, reference, reward model and critic, each a network of its own
PROMPTS = 64  # an iteration, with one answer to each
PROMPT = 24  # tokens
ANSWER = 32  # tokens, always: nothing ends an answer early
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
