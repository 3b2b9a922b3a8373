"""Over-optimisation: what a policy gains in the eyes of its reward model and in truth, by its distance from the start.

Reward models that learnt from 250, 1,000 and 4,000 noisy pairs are optimised against by PPO and by best-of-n, and every
answer is scored by the primer as well, the gold reward (Gao et al., "Scaling laws for reward model overoptimization",
arXiv:2210.10760). It starts from a finished `make quickstart`:

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
from camelid.launch.recipes import RECIPES, run_of
from camelid.rlhf.best_of_n import curve
from camelid.rlhf.collect import DrawSettings, prompt_encoder, sample_answers, score_again
from camelid.settings.config_files import load_config

CONFIGS = Path(__file__).parent.parent / "configs"
PAIRS = (250, 1000, 4000)
NS = (1, 2, 4, 8, 16, 32)
GOLD = "primer"


def train(name: str, arguments: str, workdir: epath.Path, *overrides: str) -> None:
    """The run of a primer config in `workdir`, or what is left of it."""
    config = load_config(f"{CONFIGS / name / 'primer.py'}:{arguments}", overrides)
    RECIPES[config.recipe].train(run_of(config, workdir, {}))


def ppo_curve(workdir: epath.Path) -> list[dict[str, float]]:
    """KL, proxy and gold of the held-out answers at each evaluation of a PPO run."""
    steps: dict[int, dict] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        steps.setdefault(record["step"], {}).update(record)
    found = [record for record in steps.values() if "eval/heldout/kl" in record]
    names = {"kl": "eval/heldout/kl", "proxy": "eval/heldout/scores/proxy", "gold": "eval/heldout/scores/gold"}
    return [{short: record[name] for short, name in names.items()} for record in found]


def best_of_n_curves(quickstart: epath.Path, models: dict[int, epath.Path], prompts: int) -> dict[int, list[dict]]:
    """Best-of-n of the tuned model's answers to held-out prompts, by each reward model."""
    llama = load(quickstart / "sft")
    drawing = DrawSettings(n=max(NS), max_tokens=24, seed=1)
    asked = read_samples(Source("primer:chat"), "heldout", prompt_encoder(llama, drawing.max_tokens)).spread(prompts)
    answers = sample_answers(llama, asked, GOLD, drawing, keep_repeated=True)
    gold = np.array([a.scores for a in answers])
    return {pairs: curve(np.array(score_again(llama, str(path), answers)), gold, NS) for pairs, path in models.items()}


def draw(curves: dict[str, dict[int, list[dict]]], path: Path) -> None:
    """Both rewards against the square root of KL: a panel for each method, a colour for each number of pairs."""
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
    parser.add_argument("--quickstart", type=epath.Path, required=True)
    parser.add_argument("--workdir", type=epath.Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=80, help="of PPO")
    parser.add_argument("--prompts", type=int, default=256, help="held-out prompts of best-of-n")
    args = parser.parse_args()
    tuned, models, ppo = args.quickstart / "sft", {}, {}
    for pairs in PAIRS:
        models[pairs] = args.workdir / f"reward-{pairs}"
        updates = max(40, 2 * pairs // 32)
        own = f"init_from={tuned},pairs={args.quickstart / 'pairs.jsonl'},synthetic=False,max_pairs={pairs}"
        train("reward", f"{own},steps={updates}", models[pairs])
        train(
            "ppo",
            f"init_from={tuned},reward={models[pairs]},steps={args.steps}",
            args.workdir / f"ppo-{pairs}",
            "--config.kl.coef=0.0",
            "--config.eval_percent=10.0",
            "--config.evals={}",
            "--config.watch.proxy=None",
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
