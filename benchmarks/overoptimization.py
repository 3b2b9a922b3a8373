"""Measures reward over-optimisation: reward model score and true score of a policy by its KL to the initial policy.

PPO and best-of-n optimise against reward models that were trained on 250, 1,000 and 4,000 noisy pairs. Every answer is
also scored by the primer, the gold reward (Gao et al., "Scaling laws for reward model overoptimization",
arXiv:2210.10760). The benchmark starts from a finished `make quickstart`:

    .venv/bin/python benchmarks/overoptimization.py --quickstart=runs/quickstart --workdir=runs/overoptimization \\
        --figure=docs/overoptimization.svg
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from camelid.checkpoints.language_model import load
from camelid.data.samples import read_samples
from camelid.data.sources import Source
from camelid.launch.quickstart import make_pairs
from camelid.launch.recipes import recipe_of, run_of
from camelid.rlhf.best_of_n import curve
from camelid.rlhf.collect import DrawSettings, prompt_encoder, sample_answers, score_again
from camelid.settings.config_files import load_config

CONFIGS = Path(__file__).parent.parent / "configs"
PAIRS = (250, 1000, 4000)
PAIR_PROMPTS = 6000  # prompts whose answers give at least as many pairs
NS = (1, 2, 4, 8, 16, 32)
GOLD = "primer"


def train(name: str, arguments: str, workdir: epath.Path, *overrides: str) -> None:
    """Trains a config, or resumes it.

    Args:
      name: the folder of the config, configs/<name>/primer.py.
      arguments: of the config.
      workdir: the run directory.
      *overrides: settings to change.
    """
    config = load_config(f"{CONFIGS / name / 'primer.py'}:{arguments}", overrides)
    recipe_of(config).train(run_of(config, workdir, {}))


def ppo_curve(workdir: epath.Path) -> list[dict[str, float]]:
    """{"kl", "proxy", "gold"} of the answers to held-out prompts at each evaluation of a PPO run."""
    steps: dict[int, dict] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        steps.setdefault(record["step"], {}).update(record)
    found = [record for record in steps.values() if "eval/heldout/kl" in record]
    names = {"kl": "eval/heldout/kl", "proxy": "eval/heldout/scores/proxy", "gold": "eval/heldout/scores/gold"}
    return [{short: record[name] for short, name in names.items()} for record in found]


def best_of_n_curves(quickstart: epath.Path, models: dict[int, epath.Path], prompts: int) -> dict[int, list[dict]]:
    """KL, proxy and gold of best-of-n answers of the tuned model to held-out prompts.

    Args:
      quickstart: directory of the finished quickstart.
      models: {number of pairs: run of the reward model trained on them}.
      prompts: number of held-out prompts.

    Returns:
      {number of pairs: one point for each n}.
    """
    llama = load(quickstart / "sft")
    drawing = DrawSettings(n=max(NS), max_tokens=24, seed=1)
    asked = read_samples(Source("primer:chat"), "heldout", prompt_encoder(llama, drawing.max_tokens)).spread(prompts)
    answers = sample_answers(llama, asked, GOLD, drawing, keep_repeated=True)
    gold = np.array([a.scores for a in answers])
    return {pairs: curve(np.array(score_again(llama, str(path), answers)), gold, NS) for pairs, path in models.items()}


def draw(curves: dict[str, dict[int, list[dict]]], path: Path) -> None:
    """Draws gold score and reward model's score by the square root of KL, as an SVG file.

    Args:
      curves: {method: {number of pairs: points}}; a panel for each method, a colour for each number of pairs.
      path: the file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, len(curves))
    for axes, (method, by_pairs) in zip(panels, curves.items(), strict=True):
        right = axes.twinx()
        for colour, (pairs, points) in enumerate(sorted(by_pairs.items())):
            x = [math.sqrt(max(point["kl"], 0.0)) for point in points]
            axes.plot(x, [point["gold"] for point in points], f"C{colour}o-", label=f"{pairs} pairs")
            right.plot(x, [point["proxy"] for point in points], f"C{colour}--")
        axes.set(title=method, xlabel="square root of KL to the tuned model, nats", ylabel="gold score (solid)")
        right.set(ylabel="reward model's score (dashed)")
        axes.legend(frameon=False, loc="lower center")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=epath.Path, required=True, help="directory of a finished quickstart")
    parser.add_argument("--workdir", type=epath.Path, required=True, help="directory for all runs")
    parser.add_argument("--figure", type=Path, required=True, help="the .svg file to write")
    parser.add_argument("--steps", type=int, default=80, help="steps of PPO (default: 80)")
    parser.add_argument("--prompts", type=int, default=256, help="held-out prompts for best-of-n (default: 256)")
    args = parser.parse_args()
    tuned, own_pairs, models, ppo = args.quickstart / "sft", args.workdir / "pairs.jsonl", {}, {}
    args.workdir.mkdir(parents=True, exist_ok=True)
    make_pairs(load(tuned), own_pairs, PAIR_PROMPTS)
    for pairs in PAIRS:
        models[pairs] = args.workdir / f"reward-{pairs}"
        updates = max(40, 2 * pairs // 32)
        own = f"init_from={tuned},pairs={own_pairs},synthetic=False,max_pairs={pairs}"
        train("reward", f"{own},steps={updates}", models[pairs])
        train(
            "ppo",
            f"init_from={tuned},reward={models[pairs]},steps={args.steps}",
            args.workdir / f"ppo-{pairs}",
            "--config.kl.coef=0.0",
            "--config.optim.lr=1e-4",
            "--config.critic.lr=5e-4",
            "--config.critic.first_steps=5",
            "--config.ppo.epochs=2",
            "--config.ppo.minibatches=4",
            "--config.eval_percent=10.0",
            "--config.evals={}",
            "--config.watch.proxy=None",
            "--config.watch.gold=None",
        )
        ppo[pairs] = ppo_curve(args.workdir / f"ppo-{pairs}")
    curves = {"PPO": ppo, "best of n": best_of_n_curves(args.quickstart, models, args.prompts)}
    (args.workdir / "curves.json").write_text(json.dumps(curves, indent=2))
    draw(curves, args.figure)
    for method, by_pairs in curves.items():
        for pairs, points in by_pairs.items():
            best = max(points, key=lambda point: point["gold"])
            print(
                f"{method}, {pairs} pairs: gold {points[0]['gold']:.3f} at the start, at best {best['gold']:.3f} at ",
                end="",
            )
            print(f"KL {best['kl']:.2f}, {points[-1]['gold']:.3f} at KL {points[-1]['kl']:.2f}")


if __name__ == "__main__":
    main()
