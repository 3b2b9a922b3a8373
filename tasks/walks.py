"""Random walks: find the shortest path to the goal of a directed graph, having seen only aimless walks on it.

This is the illustrative example of Decision Transformer (Chen et al. 2021, arXiv:2106.01345, appendix A.3). The graph
has 21 nodes, the letters a to u. A prompt is the node to start from. An answer is a walk such as "k d a": it begins
with that node, follows edges, ends at the goal a, and has at most 10 nodes.

The walks to train on turn at random at every node until they reach the goal or have ten nodes. A model tuned on them
learns the edges, but its walks are no shorter than they are. Only the reward favours shorter walks.

There are 20 prompts in all, too few to hold any out. The held-out conversations are those 20, each with a shortest
path: a policy is evaluated on the prompts that it is trained on. Held-out pairs are pairs of walks that are not trained
on.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

from ..errors import UserError, check_choice
from .groups import group_means
from .records import SPLITS, chat, hash_fraction, preference, prompt_text, seeded_random

NODES = "abcdefghijklmnopqrstu"
GOAL = "a"
STARTS = tuple(NODES.replace(GOAL, ""))
MAX_NODES = 10  # the most nodes in a walk, with start and goal
EDGE_PROBABILITY = 0.1  # probability of an edge from one node to another
SEED = 9  # seeds the graph
KINDS = {"chat": "53c11170955ed845b1938eb0bb21e23f", "pairs": "a8f5213c7dd4a63b336d0352a95a28af"}
GROUPS = {}  # 20 prompts are too few to divide
SCORES = ("reward",)
SIZES = {("chat", "train"): 10_000, ("pairs", "train"): 10_000, ("pairs", "heldout"): 500}
HELDOUT = 0.1  # share of pairs that is held out


def _draw_graph(rng: Random) -> tuple[dict[str, str], dict[str, int]]:
    """EDGES and SHORTEST of the first random graph in which every node has a path of fewer than MAX_NODES nodes."""
    while True:
        edges = {
            node: "".join(other for other in NODES if other != node and rng.random() < EDGE_PROBABILITY)
            for node in NODES
        }
        edges[GOAL] = ""
        shortest = _shortest(edges)
        if len(shortest) == len(NODES) and max(shortest.values()) < MAX_NODES:
            return edges, shortest


def _shortest(edges: dict[str, str]) -> dict[str, int]:
    """The number of nodes on the shortest path to the goal from each node that has a path, by breadth-first search."""
    found, frontier = {GOAL: 1}, [GOAL]
    while frontier:
        frontier = [node for node in edges if node not in found and set(edges[node]) & set(frontier)]
        found |= dict.fromkeys(frontier, max(found.values()) + 1)
    return found


EDGES, SHORTEST = _draw_graph(Random(SEED))
"""For each node, the nodes that it has an edge to, as one string; and the number of nodes on its shortest path."""


def records(kind: str, split: str = "train") -> Iterator[dict]:
    """The records of a kind and a split.

    Args:
      kind: "chat" for walks, or "pairs" for two walks from one node. The walk of higher optimality is chosen, and the
        difference is the margin.
      split: "train" or "heldout". Held-out chats are the 20 prompts, each with a shortest path.
    """
    check_choice("walks: kind", kind, KINDS)
    check_choice("walks: split", split, SPLITS)
    if kind == "pairs":
        return (_pair(index, split) for index in range(SIZES[kind, split]))
    if split == "heldout":
        return (_chat(start, shortest_path(start)) for start in STARTS)
    return (example(index) for index in range(SIZES[kind, split]))


def example(index: int) -> dict:
    """The chat record of an index >= 0, of which there is no last one: a random walk."""
    rng = seeded_random("walks/chat", index)
    start = rng.choice(STARTS)
    return _chat(start, random_walk(start, rng))


def _chat(start: str, walk: str) -> dict:
    """The chat record of a walk."""
    return chat(start, walk, optimality=optimality(start, walk))


def random_walk(start: str, rng: Random) -> str:
    """A walk from `start` that leaves each node by a random edge until it reaches the goal or has MAX_NODES nodes."""
    walk = [start]
    while walk[-1] != GOAL and len(walk) < MAX_NODES:
        walk.append(rng.choice(EDGES[walk[-1]]))
    return " ".join(walk)


def shortest_path(start: str) -> str:
    """A shortest path from `start` to the goal; the first one in alphabetical order if there are several."""
    walk = [start]
    while walk[-1] != GOAL:
        walk.append(min(EDGES[walk[-1]], key=SHORTEST.get))
    return " ".join(walk)


def optimality(start: str, answer: str) -> float:
    """How good a walk is: 1 for a shortest path, less by equal steps for each further node, 0 for MAX_NODES nodes.

    Any other text is worth 0: a walk from another start, over a missing edge or to another end, and text that is not
    nodes with spaces between. Raises UserError if `start` is the start of no prompt.
    """
    if start not in STARTS:
        raise UserError(f"walks: {start!r} is not the start of a prompt; choose one of {', '.join(STARTS)}")
    walk = answer.split()
    if walk[:1] != [start] or walk[-1] != GOAL or len(walk) > MAX_NODES:
        return 0.0
    if any(after not in tuple(EDGES.get(node, "")) for node, after in pairwise(walk)):
        return 0.0
    return (MAX_NODES - len(walk)) / (MAX_NODES - SHORTEST[start])


def reward(record: dict, answer: str) -> float:
    """The optimality of an answer to the prompt of `record`."""
    return optimality(prompt_text(record), answer)


metrics = partial(group_means, GROUPS)


def _pair(index: int, split: str) -> dict:
    """The preference record of an index >= 0: two walks from one node, of which one is better."""
    rng = seeded_random("walks/pairs", split, index)
    while True:
        start = rng.choice(STARTS)
        walks = sorted((random_walk(start, rng) for _ in range(2)), key=lambda walk: optimality(start, walk))
        worse, better = walks
        margin = optimality(start, better) - optimality(start, worse)
        heldout = hash_fraction(f"{better}/{worse}") < HELDOUT
        if margin > 0 and heldout == (split == "heldout"):
            return preference(start, better, worse, labels={"margin": margin})


def files() -> list[Path]:
    """No files: all records are generated."""
    return []
