"""Measures how often a report finds the bias of a simulated judge, and how often it finds one that is not there.

.venv/bin/python benchmarks/judge_trust.py --simulations=60
"""

import argparse
from collections import Counter

from rich.console import Console
from rich.table import Table

from camelid.evals import trust
from camelid.tests.evals.simulated_judges import First, Flipping, Fooled, Judge, Longer, Mumbling, pairs

ORDER, POSITION, LENGTH = (
    "verdicts that hold in both orders",
    "fairness to both positions",
    "fairness to short and long answers",
)
EQUAL, CONSTANT, PADDING = "calling identical answers equal", "rejecting a constant answer", "resisting padding"
FAILS = {
    Judge: set(),
    First: {ORDER, POSITION, EQUAL, CONSTANT},
    Longer: {LENGTH, PADDING},
    Flipping: {ORDER},
    Mumbling: {"verdicts that can be read"},
    Fooled: {CONSTANT},
}
"""{judge: the subjects for which it cannot be trusted}."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=60, help="simulations of each judge (default: 60)")
    args = parser.parse_args()
    table = Table(
        "judge", "questions", "biases found", "biases unclear", "biases passed", "others failed", "others unclear"
    )
    for judge, fails in FAILS.items():
        for questions in (80, 300):
            count = Counter()
            for seed in range(args.simulations):
                judged = pairs(judge(seed), questions, 1000 + seed)
                count.update((each.subject in fails, each.result) for each in trust.findings(judged, judge.name))
            shown = [(True, "fail"), (True, "unclear"), (True, "pass"), (False, "fail"), (False, "unclear")]
            table.add_row(judge.name, str(questions), *(str(count[each]) for each in shown))
    Console().print(table)


if __name__ == "__main__":
    main()
