"""What PPO makes of an experience, in loops over answers and tokens, and the settings that its tests share."""

from types import SimpleNamespace

import numpy as np

from camelid.rlhf import critic, ppo, rewards
from camelid.rlhf.rollout import Rollout

HYPER = ppo.PPOSettings(
    epochs=1,
    minibatches=1,
    clip=0.2,
    value_clip=0.2,
    value_coef=0.5,
    entropy_coef=0.01,
    gamma=1.0,
    lam=0.95,
    whiten_rewards=False,
    whiten_advantages=True,
    target_kl=None,
)
PENALTY = ppo.Penalty(coef=0.1, estimator="k1", controller="fixed", target=6.0, horizon=100.0)
SHARED = {"critic": critic.Critic("value", None, "")}
AS_IS = rewards.Shaping()
FUNCTION = rewards.Rewards({}, {"score": rewards.FunctionReward(None, 2.0)})


def task_of(shaping=AS_IS, cost=None, n=1) -> SimpleNamespace:
    """What a step's second half reads of an `AnswerTask`."""
    return SimpleNamespace(rewards=FUNCTION, cost=cost, shaping=shaping, sampling=SimpleNamespace(n=n))


def experience(lengths=(6, 1, 4, 6, 2, 3, 5, 6), seed=0, cost=False) -> ppo.Experience:
    """Numbers at random, and nonsense wherever nothing is real that nothing has promised to clear."""
    rng = np.random.default_rng(seed)
    R, P, M = len(lengths), 4, 6
    mask_RM = (np.arange(M)[None] < np.array(lengths)[:, None]).astype(np.float32)

    def drawn(filler=0.0):
        return np.where(mask_RM > 0, rng.normal(size=(R, M)), filler).astype(np.float32)

    rows = Rollout(
        tokens_RT=rng.integers(1, 9, (R, P + M)).astype(np.int32),
        segment_ids_RT=np.ones((R, P + M), np.int32),
        positions_RT=np.zeros((R, P + M), np.int32),
        mask_RM=mask_RM,
        sampling_logprobs_RM=drawn(),
        stopped_R=(np.arange(R) % 3 > 0).astype(np.float32),
        index_R=np.arange(R, dtype=np.int32),
    )
    names = ["critic", *(["cost_critic"] if cost else [])]
    return ppo.Experience(
        rows=rows,
        logp_RM=drawn() - 2.0 * mask_RM,
        ref_logp_RM=drawn() - 2.0 * mask_RM,
        entropy_RM=np.abs(drawn()),
        kl_exact_RM=np.abs(drawn()),
        values={name: drawn(1e6) for name in names},
        scores={"score": 3.0 * rng.normal(size=R).astype(np.float32)}
        | ({"cost": rng.normal(size=R).astype(np.float32)} if cost else {}),
    )


def slow_gae(reward, value, gamma, lam):
    """One answer's advantages: errors of its own and all later tokens, discounted."""
    n = len(reward)
    error = [reward[t] + gamma * (value[t + 1] if t + 1 < n else 0.0) - value[t] for t in range(n)]
    return [sum((gamma * lam) ** (j - t) * error[j] for j in range(t, n)) for t in range(n)]


def moments(rows):
    """Mean and deviation over all tokens of all answers."""
    flat = np.concatenate(rows)
    return flat.mean(), np.sqrt(((flat - flat.mean()) ** 2).mean())


def slow_learn(seen, hyper, penalty, shaping, coef, past_scores, multiplier=None):
    """Rewards, advantages and returns of each answer, token by token."""
    scores = 2.0 * seen.scores["score"].astype(np.float64)
    history = np.concatenate([past_scores, scores])
    reward, value, score_of = [], [], []
    for r, n in enumerate(seen.rows.mask_RM.sum(axis=1).astype(int)):
        score = scores[r]
        if shaping.normalise:
            score = (score - history.mean()) / history.std()
        if shaping.clip is not None:
            score = min(max(score, -shaping.clip), shaping.clip)
        if shaping.missing_eos is not None and not seen.rows.stopped_R[r]:
            score = shaping.missing_eos
        score_of.append(score - shaping.length_penalty * n)
        d = (seen.logp_RM[r] - seen.ref_logp_RM[r])[:n].astype(np.float64)
        kl = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d, "exact": seen.kl_exact_RM[r, :n]}[penalty.estimator]
        reward.append(-coef * kl)
        reward[-1][n - 1] += score_of[-1]
        value.append(seen.values["critic"][r, :n].astype(np.float64))
    told = np.mean([sum(row) for row in reward])
    if hyper.whiten_rewards:
        mean, deviation = moments(reward)
        reward = [(row - mean) / deviation + mean for row in reward]
        told = np.mean([sum(row) for row in reward])
    advantage = [np.array(slow_gae(*both, hyper.gamma, hyper.lam)) for both in zip(reward, value, strict=True)]
    returns = {"critic": [a + v for a, v in zip(advantage, value, strict=True)]}
    if multiplier is not None:
        cost_value = [seen.values["cost_critic"][r, : len(row)].astype(np.float64) for r, row in enumerate(reward)]
        cost = [np.append(np.zeros(len(row) - 1), seen.scores["cost"][r]) for r, row in enumerate(reward)]
        dear = [np.array(slow_gae(*both, hyper.gamma, hyper.lam)) for both in zip(cost, cost_value, strict=True)]
        returns["cost_critic"] = [a + v for a, v in zip(dear, cost_value, strict=True)]
        advantage = [(a - multiplier * c) / (1 + multiplier) for a, c in zip(advantage, dear, strict=True)]
    if hyper.whiten_advantages:
        mean, deviation = moments(advantage)
        advantage = [(row - mean) / deviation for row in advantage]
    return advantage, returns, told
