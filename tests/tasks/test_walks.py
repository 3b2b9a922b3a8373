"""Random walks: the graph, what a walk is worth, how far from the optimum the walks to train on are."""

import hashlib
import itertools
import json

import numpy as np
import pytest

from camelid.data.formats import parse
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError
from camelid.tasks import walks

# Changes whenever a record changes: then every number published for the walks has to be measured again.
DIGEST = "b4f50076f355e541621f0f87dcb8ec2ba7b9d4c960e4dcece8dd2281d755115e"


@pytest.fixture(scope="module")
def chats() -> list[dict]:
    return list(walks.records("chat", "train"))


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    return list(walks.records("pairs", "train"))


def turns(record: dict) -> tuple[str, str]:
    prompt, answer = record["messages"]
    return prompt["content"], answer["content"]


def sides(pair: dict) -> tuple[str, str, str]:
    return pair["messages"][0]["content"], pair["chosen"][0]["content"], pair["rejected"][0]["content"]


def ask(start: str) -> dict:
    return {"messages": [{"role": "user", "content": start}], "reference": None, "meta": {}}


def test_records_are_the_published_ones(chats, pairs):
    lines = "\n".join(json.dumps(record, sort_keys=True) for record in chats[:500] + pairs[:500])
    assert hashlib.sha256(lines.encode()).hexdigest() == DIGEST


def test_an_example_depends_on_its_index_alone(chats):
    assert [walks.example(index) for index in (70, 3)] == [chats[70], chats[3]]


def test_the_graph_has_about_a_tenth_of_all_edges_and_none_leaves_the_goal():
    edges = [(node, other) for node, others in walks.EDGES.items() for other in others]
    assert 0.08 < len(edges) / (20 * 20) < 0.15
    assert all(node != other for node, other in edges)
    assert walks.EDGES[walks.GOAL] == ""


def test_shortest_paths_agree_with_powers_of_the_adjacency_matrix():
    n = len(walks.NODES)
    adjacency = np.zeros((n, n), int)
    for node, others in walks.EDGES.items():
        for other in others:
            adjacency[walks.NODES.index(node), walks.NODES.index(other)] = 1
    goal = walks.NODES.index(walks.GOAL)
    for node in walks.NODES:
        powers = (np.linalg.matrix_power(adjacency, steps) for steps in range(walks.MAX_NODES))
        steps = next(steps for steps, power in enumerate(powers) if power[walks.NODES.index(node), goal])
        assert walks.SHORTEST[node] == steps + 1 < walks.MAX_NODES


def test_the_optimum_is_known_from_every_start_and_nothing_beats_it():
    for start in walks.STARTS:
        path = walks.shortest_path(start)
        assert walks.optimality(start, path) == 1.0
        assert len(path.split()) == walks.SHORTEST[start]


def test_no_shorter_walk_than_the_optimum_is_accepted():
    for start in walks.STARTS:
        for between in range(min(walks.SHORTEST[start] - 2, 3)):
            for middle in itertools.product(walks.NODES, repeat=between):
                assert walks.optimality(start, " ".join((start, *middle, walks.GOAL))) == 0.0


SCORES = [  # start, answer, its worth; by hand from the edges d -> b l t, l -> a m, m -> j u, u -> r, r -> e, e -> a
    ("d", "d l a", 1.0),
    ("d", " d  l a\n", 1.0),
    ("d", "d l m u r e a", 3 / 7),
    ("d", "d a", 0.0),
    ("d", "l a", 0.0),
    ("d", "d l", 0.0),
    ("d", "d l a a", 0.0),
    ("d", "dla", 0.0),
    ("d", "d, l, a", 0.0),
    ("d", "D L A", 0.0),
    ("d", "d la a", 0.0),
    ("d", "d x a", 0.0),
    ("d", "", 0.0),
    ("e", "e a", 1.0),
    ("e", "a", 0.0),
    ("u", "u r u r u r u r e a", 0.0),  # ten nodes: the longest walk
    ("u", "u r u r u r e a", 2 / 6),
    ("u", "u r u r u r u r u r e a", 0.0),
]


@pytest.mark.parametrize(("start", "answer", "worth"), SCORES)
def test_a_walk_is_worth_what_its_length_says(start, answer, worth):
    assert walks.reward(ask(start), answer) == pytest.approx(worth)


@pytest.mark.parametrize("start", ["a", "x", "", "d l"])
def test_what_is_no_start_has_no_reward(start):
    with pytest.raises(UserError, match=r"walks: .* is not the start of a prompt; choose one of b, c, d"):
        walks.reward(ask(start), "d l a")


def test_walks_to_train_on_follow_edges_and_are_far_from_the_optimum(chats):
    worth = []
    for record in chats:
        start, answer = turns(record)
        walk = answer.split()
        assert walk[0] == start and all(after in walks.EDGES[node] for node, after in itertools.pairwise(walk))
        assert walk[-1] == walks.GOAL or len(walk) == walks.MAX_NODES
        worth.append(walks.reward(ask(start), answer))
        assert record["meta"]["optimality"] == worth[-1]
    assert 0.27 < np.mean(worth) < 0.31
    assert {turns(record)[0] for record in chats} == set(walks.STARTS)


def test_the_heldout_conversations_are_every_start_once_with_its_optimum():
    heldout = list(walks.records("chat", "heldout"))
    assert [turns(record)[0] for record in heldout] == list(walks.STARTS)
    assert {walks.reward(ask(turns(record)[0]), turns(record)[1]) for record in heldout} == {1.0}


def test_pairs_prefer_the_better_walk_by_the_margin(pairs):
    for pair in pairs[:2_000]:
        start, chosen, rejected = sides(pair)
        assert parse(pair, "camelid") == pair
        margin = walks.optimality(start, chosen) - walks.optimality(start, rejected)
        assert margin == pair["margin"] > 0
    heldout = {sides(pair) for pair in walks.records("pairs", "heldout")}
    assert len(heldout) > 400 and not heldout & {sides(pair) for pair in pairs}


def test_a_small_tokenizer_spells_each_node_as_one_token(chats, tmp_path):
    texts = [message["content"] for record in chats[:1_000] for message in record["messages"]]
    tokenizer = train_sentencepiece(texts, vocab_size=3 + 256 + 22 + 21, output_dir=tmp_path)
    for record in chats[:50]:
        answer = turns(record)[1]
        assert len(tokenizer.encode(answer)) == len(answer.split())


def test_unknown_kinds_and_splits_are_the_users_error():
    for arguments in (("letters", "train"), ("chat", "test")):
        with pytest.raises(UserError, match=r"walks: (kind|split) is .*; it must be one of"):
            walks.records(*arguments)
