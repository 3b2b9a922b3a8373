"""Measures speculative decoding: tokens per second of one stream without and with a draft, for 1 to 6 proposals a pass.

    python benchmarks/speculative.py TARGET DRAFT --rounds=5

The model answers questions in its chat template, at each temperature. With `--text=SOURCE` it continues held-out texts
after their first 16 tokens instead. Prints a table in Markdown: medians over rounds, the range of the ratio, and how
many of a pass's k proposals are accepted. At temperature 0 the answers are compared with those without a draft.
"""

import argparse
import itertools
import os
import statistics
import time

from smollm2_prompts import QUESTIONS

import camelid
from camelid.checkpoints.language_model import LanguageModel
from camelid.data.sources import Source, read
from camelid.model.sampling import Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="path of the model")
    parser.add_argument("draft", help="path of the draft model")
    parser.add_argument("--quantize", help="int8, int4, nf4 or stored for the model (default: not quantised)")
    parser.add_argument("--draft_quantize", help="int8, int4, nf4 or stored for the draft (default: not quantised)")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7], help="default: 0 and 0.7")
    parser.add_argument("--max_tokens", type=int, default=96, help="largest number of tokens (default: 96)")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds (default: 5)")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="number of prompts (default: 20)")
    parser.add_argument("--text", metavar="SOURCE", help="source of texts to continue, such as primer:documents")
    parser.add_argument("--most", type=int, default=6, metavar="K", help="largest number of proposals (default: 6)")
    args = parser.parse_args()

    target = camelid.load(args.target, quantize=args.quantize)
    draft = camelid.load(args.draft, quantize=args.draft_quantize)
    if args.text:
        documents = itertools.islice(read(Source(args.text), "heldout"), args.questions)
        begin = [target.tokenizer.bos_id] if target.tokenizer.adds_bos else []
        prompts = [begin + target.tokenizer.encode(document["text"])[:16] for document in documents]
        stops = (target.tokenizer.eos_id,)
    else:
        prompts = [target.prompt(question) for question in QUESTIONS[: args.questions]]
        stops = target.template.stop_ids(target.tokenizer)
    for temperature in args.temperatures:
        sampling = Sampling(max_tokens=args.max_tokens, temperature=temperature, stop_ids=stops)
        load = os.getloadavg()[0]
        print(f"\ntemperature {temperature}, {len(prompts)} answers, {args.rounds} rounds, load {load:.1f}\n")
        print("| proposals a pass | tokens/s | of plain | range | kept a pass | share kept |")
        print("| --- | --- | --- | --- | --- | --- |")
        for row in measure(target, draft, prompts, sampling, range(1, args.most + 1), args.rounds):
            print(f"| {' | '.join(row)} |", flush=True)


def measure(
    target: LanguageModel, draft: LanguageModel, prompts, sampling: Sampling, ks, rounds: int
) -> list[list[str]]:
    """The rows of the table. The first round compiles, counts accepted tokens and compares answers; it is not timed.

    Args:
      target: the model.
      draft: the draft model.
      prompts: token ids of each prompt.
      sampling: the sampling settings.
      ks: the numbers of proposals a pass.
      rounds: number of timed rounds.
    """
    rates: dict[int, list[float]] = {k: [] for k in (0, *ks)}  # 0: without a draft
    kept = {}
    for turn in range(rounds + 1):
        for k in rates:
            answers, seconds = answer(target, draft, k, prompts, sampling)
            if turn > 0:
                rates[k].append(sum(map(len, answers)) / seconds)
            elif k == 0:
                own = answers
            else:
                kept[k] = target.draft.accepted / target.draft.passes
                if sampling.temperature == 0 and answers != own:
                    apart = sum(one != two for one, two in zip(answers, own, strict=True))
                    print(f"with {k} proposals {apart} answers differ from the model's own (nearly equal logits)")
    rows = []
    for k, rate in rates.items():
        ratios = [one / plain for one, plain in zip(rate, rates[0], strict=True)]
        row = [str(k), f"{statistics.median(rate):.1f}", f"{statistics.median(ratios):.2f}"]
        row += [f"{min(ratios):.2f} to {max(ratios):.2f}", f"{kept[k]:.2f}", f"{kept[k] / k:.2f}"] if k else [""] * 3
        rows.append(row)
    return rows


def answer(
    target: LanguageModel, draft: LanguageModel, k: int, prompts, sampling: Sampling
) -> tuple[list[list[int]], float]:
    """The answers with `k` proposals a pass (0: without the draft), decoded one by one, and the seconds they took."""
    target.draft = None
    if k:
        target.assist(draft, k)
    begin = time.perf_counter()
    answers = [target.complete([prompt], sampling)[0] for prompt in prompts]
    return answers, time.perf_counter() - begin


if __name__ == "__main__":
    main()
