"""What a draft is worth: tokens a second of one stream with it and without, taking turns, for 1 to 6 proposals a pass.

    python benchmarks/speculative.py TARGET DRAFT --rounds=5

Questions are answered as `camelid chat` would, prompt included, at each temperature; with `--text=SOURCE` held-out
texts of a source are continued after their first 16 tokens instead. Prints a table in Markdown: medians over rounds,
the ratio's range, and how many of the k proposals of a pass stand in the answers. At temperature 0 the answers are
compared with the model's own.
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
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("--quantize", help="the target's matrices, as `camelid chat` takes it")
    parser.add_argument("--draft_quantize", help="the draft's")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--max_tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="how many, of twenty at most")
    parser.add_argument("--text", metavar="SOURCE", help="of documents, such as primer:documents")
    parser.add_argument("--most", type=int, default=6, metavar="K", help="proposals a pass, from 1 on")
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
    """The table's rows. The first round compiles, counts and compares, and is not timed."""
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
                    print(f"with {k} proposals {apart} answers part from the model's own (two logits as good as equal)")
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
    """The answers, one stream at a time, and the seconds that they took."""
    target.draft = None
    if k:
        target.assist(draft, k)
    begin = time.perf_counter()
    answers = [target.complete([prompt], sampling)[0] for prompt in prompts]
    return answers, time.perf_counter() - begin


if __name__ == "__main__":
    main()
