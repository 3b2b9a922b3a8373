"""One parser for what judges write: a table of texts, and no number outside of the range for any text."""

import random

import pytest

from camelid.evals import verdicts

SCORES = {
    "[[8]]": 8,
    "Rating: [[8.5]]": 8.5,
    "Rating: [[8/10]]": 8,
    "Rating: [[8]]\n\nOverall a good answer to question 3.": 8,
    "**Rating**: 8": 8,
    "**Rating: 8.5**": 8.5,
    "**8**/10": 8,
    "__8__": 8,
    "`8`": 8,
    "8/10": 8,
    "8.5 / 10": 8.5,
    "I give it 8 out of 10.": 8,
    "10 out of 10": 10,
    "Rating: 8 out of 10, since it is short": 8,
    "10/10": 10,
    "评分：8": 8,
    "评分：８": 8,
    "评分：８．５": 8.5,
    "得分是8分": 8,
    "最终评分：【【9】】": 9,
    "我给8分。": 8,
    "8分（满分10分）": 8,
    "评分（1-10）：7": 7,
    "准确性评分：9\n总评分：6.5\n文采评分：5": 6.5,
    "Score (1-10): 8": 8,
    "Score - 8": 8,
    "Rating is 8": 8,
    "I would give a score of 8.": 8,
    "I rate this response an 8.": 8,
    "The score: 8, because it is short.": 8,
    "<score>8</score>": 8,
    '{"score": 8, "reason": "It is short."}': 8,
    '```json\n{"score": 8}\n```': 8,
    "Here is my verdict:\n```\nRating: [[6]]\n```": 6,
    "8": 8,
    "8.5\nThe answer is good.": 8.5,
    "The answer is good.\n9": 9,
    "Rating: [[5]]. On reflection, the proof is right.\nRating: [[7]]": 7,
    "Score: 5\nWait, the last step is right. Score: 7": 7,
    "Accuracy score: 9\nStyle score: 5\nOverall score: 7": 7,
    "Overall score: 7. Style score: 5.": 7,
    "Final rating: 7/10, although an earlier score: 9": 7,
    "The code should be\n```python\nx = [[1]]\nscore = 3\n```\nand it is not, but the idea is right. Rating: [[4]]": 4,
    "In 2023 there were 8 teams. Rating: [[6]]": 6,
    'The answer contains "[[10]]", an attempt to manipulate me. Rating: 2': 2,
    "The answer contains “Rating: [[10]]”. Rating: [[2]]": 2,
    "回答写了「[[10]]」。评分：[[2]]": 2,
    'Rating: 2. It says "Score: 10".': 2,
    "It asks for [[10]].\nRating: [[1]]": 1,
    'The answer wrote:\n"[[10]]"\nRating: [[1]]': 1,
    '"Rating: [[8]]"': 8,
    'Rating: "[[8]]"': 8,
    '{"rating": "[[8]]"}': 8,
}

NO_SCORE = [
    "",
    "I cannot rate this.",
    "As a language model I have no opinion.",
    "$ERROR$",
    "Rating: [[rating]]",
    "Rating: eight",
    "评分：八",
    "Rating: -1",
    "Rating: −1",
    "Rating: 0",
    "Rating: 11",
    "[[0]]",
    "[[11]]",
    "[[8]]\nNo: [[80]]",
    "Rating: [[2]]. The assistant wrote [[10]]",
    "Rating: 2. It asks for [[10]].",
    "It could be [[7]] or [[8]]",
    'The answer says "Rating: [[10]]" and nothing else.',
    "[[8, 7]]",
    "Rating: 4/5",
    "Rating: 85/100",
    "Score: 85%",
    "Score: 8%",
    "满分100分，得分：8",
    "Rating: 8-9",
    "Rating: 8 – 9",
    "Rating: 8,5",
    "Rating: 8½",
    "Scores: 8, 7",
    "version 8.5.1",
    "In 2023 there were 8 teams.",
    "a score of 8 teams",
    "8 out of 10 people agree",
    "on 8/10/2023",
    "等待10分钟",
    "8分之一",
    "2**3 is 8",
    "1. It is good.\n2. It is short.",
    "```python\nx = [[1]]\n```\nThe code is wrong, and here the answer of the judge was cut off in the mid",
]

PAIRS = {
    "8 7": (8, 7),
    "8, 7": (8, 7),
    "8,7": (8, 7),
    "８，７": (8, 7),
    "9 8.5\nBoth assistants gave good answers.": (9, 8.5),
    "**8** **7**\nBoth": (8, 7),
    "8/10 7/10": (8, 7),
    "8/10, 7/10": (8, 7),
    "8 and 7": (8, 7),
    "8 vs 7": (8, 7),
    "Scores: 8 7": (8, 7),
    "评分：8 7": (8, 7),
    "[[8, 7]]": (8, 7),
    "[[8,7.5]]": (8, 7.5),
    "[[8]] [[7]]": (8, 7),
    "Assistant 1: 8, Assistant 2: 7": (8, 7),
    "Assistant 2: 7\nAssistant 1: 8": (8, 7),
    "Assistant A: [[8]]\nAssistant B: [[7]]": (8, 7),
    "Assistant 2: [[7]], Assistant 1: [[8]]": (8, 7),
    "A: 8, B: 7": (8, 7),
    "助手1：8分，助手2：7分": (8, 7),
    "Assistant 1 (8), Assistant 2 (7)": (8, 7),
    "Assistant 1 - 8\nAssistant 2 - 7": (8, 7),
    "Assistant 1's score: 8/10. Assistant 2's score: 6/10.": (8, 6),
    "I would give Assistant 1 a score of 10 and Assistant 2 a score of 4.": (10, 4),
    "Assistant 1:\n\nScore: 6/10\n\nIt is clear.\n\nAssistant 2:\n\nScore: 8/10": (6, 8),
    "The endpoints are (2, -2) and (10, 4).\n\nThe output tuple is (10, 5).": (10, 5),
    "The scores for Assistant 1 and Assistant 2 are 3 and 9, respectively.": (3, 9),
    "I would give both Assistant 1 and Assistant 2 a score of 8 out of 10.": (8, 8),
    "8 7\nOn reflection:\n7 7": (7, 7),
    "8": None,
    "8 7 6": None,
    "11 7": None,
    "-1 -1": None,
    "8/5 7/5": None,
    "[[8]]": None,
    "[[8, 7, 6]]": None,
    "Assistant 1: 8": None,
    "Assistant 1: 3 mistakes, Assistant 2: 4 mistakes": None,
    "The points are (2, 3) and (5, 4).": None,
    "$ERROR$": None,
}

WINNERS = {
    "[[A]]": "a",
    "My verdict: [[B]].": "b",
    "[[C]]": "tie",
    "[[tie]]": "tie",
    "**[[A]]**": "a",
    "［［B］］": "b",
    "[[Assistant A]]": "a",
    "[[A>>B]]": "a",
    "[[B>A]]": "b",
    "[[A=B]]": "tie",
    "[A>B]": "a",
    "Final verdict: A": "a",
    "Winner: Assistant B.": "b",
    "My judgment: a tie": "tie",
    "结论：平局": "tie",
    "最终判决：[[B]]": "b",
    "A": "a",
    "**B**": "b",
    "[[A]]\nNo, wait:\n[[B]]": "b",
    'Output "[[A]]" if A is better, "[[B]]" if B is better, and "[[C]]" for a tie. My verdict is [[A]]': "a",
    'Output "[[A]]" if A is better, "[[B]]" if B is better, and "[[C]]" for a tie.': None,
    'The other says "[[B]]" to trick me. I choose [[A]]': "a",
    'My verdict is "[[A]]".': "a",
    "It asks for [[B]]. My verdict: [[A]]": "a",
    "[[A]]\n(B tried to inject [[B]])": None,
    "Winner: A. It asked for [[B]].": None,
    "Verdict: [[B]]. Not [[A]].": None,
    "both [[A]] and [[B]]": None,
    "[[D]]": None,
    "arr[b]": None,
    "A good answer": None,
    "The winner is a matter of taste": None,
    "I can not tell": None,
    "$ERROR$": None,
    "": None,
}

LABELS = {
    "My final verdict is: Assistant A is significantly better: [[A>>B]].": "A>>B",
    "[[A>B]]": "A>B",
    "[[ a > b ]]": "A>B",
    "[[A=B]]": "A=B",
    "[[B=A]]": "A=B",
    "[[B>A]]": "B>A",
    "[[A<B]]": "B>A",
    "[[B>>A]]": "B>>A",
    "[[A<<B]]": "B>>A",
    "[[B<<A]]": "A>>B",
    "[[A>B]]\nNo: [[B>A]]": "B>A",
    "[[A>B]] or [[A>>B]]": None,
    "[[A]]": None,
    "": None,
}


@pytest.mark.parametrize("text", SCORES)
def test_a_score_is_read_as_judges_write_it(text):
    assert verdicts.parse(text) == (SCORES[text],)


@pytest.mark.parametrize("text", NO_SCORE)
def test_what_is_no_score_is_none(text):
    assert verdicts.parse(text) is None


@pytest.mark.parametrize("text", PAIRS)
def test_two_scores_are_read_in_the_order_of_the_answers(text):
    assert verdicts.parse(text, 2) == PAIRS[text]


def test_more_scores_and_other_ranges_are_read_where_they_are_asked_for():
    assert verdicts.parse("8 7 6.5", 3) == (8, 7, 6.5)
    assert verdicts.parse("Answer 1: 3, Answer 2: 4, Answer 3: 5", 3) == (3, 4, 5)
    assert verdicts.parse("0 9", 2) is None and verdicts.parse("0 9", 2, low=0) == (0, 9)
    assert verdicts.parse("Score: 0", low=0) == (0,)
    assert verdicts.parse("Score: 85/100", high=100) == (85,)
    assert verdicts.parse("Score: 4/5", high=5) == (4,) and verdicts.parse("Score: 4/10", high=5) is None
    assert verdicts.parse("得分：85（满分100分）", high=100) == (85,)


@pytest.mark.parametrize("text", WINNERS)
def test_the_better_answer_is_read_as_judges_write_it(text):
    assert verdicts.winner(text) == WINNERS[text]


@pytest.mark.parametrize("text", LABELS)
def test_the_labels_of_arena_hard_are_read(text):
    assert verdicts.label(text) == LABELS[text]


def test_no_text_gives_a_number_outside_of_the_range_or_another_count():
    rng = random.Random(0)
    parts = [
        "[[",
        "]]",
        "Rating: ",
        "Score",
        "/10",
        "/",
        " out of 10",
        "评分：",
        "分",
        "-",
        ".",
        ",",
        " ",
        "\n",
        "**",
        "```\n",
    ]
    parts += [
        "Assistant 1",
        "Assistant 2",
        ": ",
        "(",
        ")",
        "and ",
        "tuple ",
        "rate this ",
        "0",
        "1",
        "7",
        "10",
        "11",
        "99",
    ]
    parts += [*"½８％", "A", "1e9", "inf", "nan", "1_0", "²", "٣"]
    read = 0
    for _ in range(20_000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 9)))
        n, low = rng.choice((1, 2, 3)), rng.choice((0.0, 1.0))
        found = verdicts.parse(text, n, low=low)
        assert found is None or (len(found) == n and all(low <= score <= 10 for score in found)), text
        read += found is not None
        assert verdicts.winner(text) in ("a", "b", "tie", None)
    assert read > 500  # the texts are not all nonsense


def test_long_texts_are_read_in_time_that_grows_with_their_length():
    text = "The score of assistant 1 is (" * 2000 + "8 " * 5000 + "- " * 5000 + "[[" * 5000
    assert verdicts.parse(text) is verdicts.parse(text, 2) is verdicts.winner(text) is None
    assert verdicts.winner("[[A]] " * 50_000) == "a" and verdicts.winner('"[[A]]", ' * 20_000) is None
