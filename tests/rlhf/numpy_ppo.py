"""What PPO makes of an experience, in loops over answers and tokens, and the settings that its tests share."""

import numpy as np

from camelid.rlhf import critic, ppo, rewards

HYPER = ppo.Hyper(
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
