"""Random walks: find the shortest path to the goal of a directed graph, having seen only aimless walks on it.

The illustrative example of Decision Transformer (Chen et al. 2021, arXiv:2106.01345, appendix A.3). The graph has 21
nodes, the letters a to u. A prompt is the node to start from; an answer is a walk, "k d a": it begins with that node,
follows edges, ends at the goal a, and has at most 10 nodes.

Walks to train on turn at random at every node, until they reach the goal or are ten nodes long. A model tuned on them
learns the edges, and is as far from the optimum as they are; only the reward says that shorter is better.

There are 20 prompts in all, too few to hold any out: the held-out conversations are those 20, each with a shortest
path, and what a policy is trained on it is measured on. Held-out pairs are pairs of walks that are not trained on.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

from ..errors import UserError, check_choice
from .groups import group_means
from .records import SPLITS, chat, position, preference, prompt_text, random_of

NODES = "abcdefghijklmnopqrstu"
GOAL = "a"
STARTS = tuple(NODES.replace(GOAL, ""))
LONGEST = 10  # nodes in a walk, start and goal among them
EDGE = 0.1  # how likely there is an edge from one node to another
SEED = 9  # of the graph
KINDS = ("chat", "pairs")
GROUPS = {}  # its prompts are too few to divide
SCORES = ("reward",)
SIZES = {("chat", "train"): 10_000, ("pairs", "train"): 10_000, ("pairs", "heldout"): 500}
HELDOUT = 0.1  # the part of pairs that is held out


def _draw_graph(rng: Random) -> tuple[dict[str, str], dict[str, int]]:
    """The first graph drawn in which a shortest path is worth something from everywhere, as EDGES and SHORTEST."""
    while True:
        edges = {node: "".join(other for other in NODES if other != node and rng.random() < EDGE) for node in NODES}
        edges[GOAL] = ""
        shortest = _shortest(edges)
        if len(shortest) == len(NODES) and max(shortest.values()) < LONGEST:
            return edges, shortest


def _shortest(edges: dict[str, str]) -> dict[str, int]:
    """How many nodes the shortest path to the goal has from each node that has one: breadth first from the goal."""
    found, border = {GOAL: 1}, [GOAL]
    while border:
        border = [node for node in edges if node not in found and set(edges[node]) & set(border)]
        found |= dict.fromkeys(border, max(found.values()) + 1)
    return found


EDGES, SHORTEST = _draw_graph(Random(SEED))
"""By node: the nodes that it has an edge to, as one string; the number of nodes on its shortest path to the goal."""


def records(kind: str, split: str = "train") -> Iterator[dict]:
    """The records of a kind, "chat" or "pairs".

    Args:
      kind: "chat" for walks; "pairs" for two walks from one node, the one of higher optimality chosen, the difference
        as the margin.
      split: "train" or "heldout" (see the module).
    """
    check_choice("walks: kind", kind, KINDS)
    check_choice("walks: split", split, SPLITS)
    if kind == "pairs":
        return (_pair(index, split) for index in range(SIZES[kind, split]))
    if split == "heldout":
        return (_chat(start, shortest_path(start)) for start in STARTS)
    return (example(index) for index in range(SIZES[kind, split]))


def example(index: int) -> dict:
    """The walk of an index >= 0, endless, as a chat record."""
    rng = random_of("walks/chat", index)
    start = rng.choice(STARTS)
    return _chat(start, random_walk(start, rng))


def _chat(start: str, walk: str) -> dict:
    return chat(start, walk, optimality=optimality(start, walk))


def random_walk(start: str, rng: Random) -> str:
    """A walk that leaves each node by a random edge, to the goal or as long as a walk may be."""
    walk = [start]
    while walk[-1] != GOAL and len(walk) < LONGEST:
        walk.append(rng.choice(EDGES[walk[-1]]))
    return " ".join(walk)


def shortest_path(start: str) -> str:
    """The walk of optimality 1 from a node; of several the first in the alphabet."""
    walk = [start]
    while walk[-1] != GOAL:
        walk.append(min(EDGES[walk[-1]], key=SHORTEST.get))
    return " ".join(walk)


def optimality(start: str, answer: str) -> float:
    """How good a walk is: 1 for the shortest path, less by equal steps for each node more, 0 for one of LONGEST nodes.

    Any other text is worth 0: a walk from another start, over a missing edge, to an end that is not the goal, and
    anything but nodes with spaces between. Raises UserError for a start that no prompt has.
    """
    if start not in STARTS:
        raise UserError(f"walks: {start!r} is no node to start from; choose one of {', '.join(STARTS)}")
    walk = answer.split()
    if walk[:1] != [start] or walk[-1] != GOAL or len(walk) > LONGEST:
        return 0.0
    if any(after not in tuple(EDGES.get(node, "")) for node, after in pairwise(walk)):
        return 0.0
    return (LONGEST - len(walk)) / (LONGEST - SHORTEST[start])


def reward(record: dict, answer: str) -> float:
    """The optimality of an answer to a record's prompt."""
    return optimality(prompt_text(record), answer)


metrics = partial(group_means, GROUPS)


def _pair(index: int, split: str) -> dict:
    """The first pair of walks in a split, drawn for an index, of which one is better."""
    rng = random_of("walks/pairs", split, index)
    while True:
        start = rng.choice(STARTS)
        walks = sorted((random_walk(start, rng) for _ in range(2)), key=lambda walk: optimality(start, walk))
        worse, better = walks
        margin = optimality(start, better) - optimality(start, worse)
        heldout = position(f"{better}/{worse}") < HELDOUT
        if margin > 0 and heldout == (split == "heldout"):
            return preference(start, better, worse, labels={"margin": margin})


def files() -> list[Path]:
    """The files that decide the records."""
    return [Path(__file__), Path(__file__).with_name("records.py")]
