"""The commands by which a teacher makes rows write datasets that data/ reads, the same bytes after any interruption."""

import json
import re

import pytest

from camelid.curate.teachers.preference_pairs import Comparison
from camelid.data.cards import read_card
from camelid.data.sources import Source, read
from camelid.errors import UserError
from camelid.evals.grading import ScoringJudge
from camelid.launch.commands.arguments import Parser
from camelid.launch.commands.making import add_making, comparing
from camelid.tests.curate.test_dialogues import write as dialogue
from camelid.tests.curate.test_revisions import write as revision
from camelid.tests.evals.small_model import write_model
from camelid.tests.serve.misbehaving import misbehaving


class Asked:
    """A request as an endpoint sees it."""

    def __init__(self, messages):
        self.messages = messages


def run(*words):
    parser = Parser(prog="camelid")
    add_making(parser.add_subparsers(dest="action", required=True, parser_class=Parser))
    args = parser.parse_args([str(word) for word in words])
    args.run(args)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    records = [{"instruction": f"Name {n} rivers.", "input": "", "output": f"{n}."} for n in range(5)]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, records[0]]))
    return path


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checked(folder, kept, dropped):
    """The records of a dataset, as data/ reads them, with the rows and reasons that its card has to have."""
    card = read_card(folder)
    assert card.splits["train"].rows == kept and card.damage(folder) is None
    assert {reason: n for step in card.steps.values() for reason, n in step.rejected.items() if n} == dropped
    records = list(read(Source(str(folder))))
    assert len(records) == kept and sum(source.read for source in card.sources.values()) == kept + sum(dropped.values())
    return records


def test_dialogues_over_http_are_a_dataset_and_a_second_run_repeats_it_and_asks_nothing(questions, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["dialogues", f"--source={questions}", f"--output={out}", "--turns=2", "--licence=MIT"]
    with misbehaving(write=lambda messages: dialogue(Asked(messages))) as server:
        run(*words, f"--teacher={server.url}", "--seed=1")
        first, asked = files_of(out), len(server.asked)
        assert re.search(r"10 replies of first, .* tokens", capsys.readouterr().out)
        run(*words, f"--teacher={server.url}", "--seed=1")
        assert files_of(out) == first and len(server.asked) == asked == 10
        with pytest.raises(UserError, match="lacks replies for another"):
            run(*words, f"--teacher={server.url}", "--seed=2", "--temperature=0.1")
    records = checked(out, 5, {"repeated": 1})
    assert [len(record["messages"]) for record in records] == [4] * 5
    assert records[0]["meta"]["teacher"] == "first" and records[0]["meta"]["source"] == "questions"
    source = read_card(out).sources["questions"]
    assert (source.licence, source.teacher) == ("MIT", "first")


def test_pairs_by_two_teachers_and_a_judge_share_a_journal(questions, tmp_path, capsys):
    def write(messages):
        said = messages[-1]["content"]
        if "[[A]]" not in said:
            return "Short." if server.bodies[-1]["temperature"] < 0.9 else "A longer answer."
        return "[[A]]" if said.index("A longer answer.") < said.index("Short.") else "[[B]]"

    with misbehaving(write=write) as server:
        also, judge = f"--also=large={server.url}", f"--judge=grader={server.url}/v1"
        words = ["pairs", f"--source={questions}", f"--output={tmp_path / 'out'}", "--concurrency=1"]
        run(*words, f"--teacher=small={server.url}", also, judge)
        assert {body["model"] for body in server.bodies} == {"small", "large", "grader"}
        assert len(server.asked) == 5 * 2 + 5 * 2
    records = checked(tmp_path / "out", 5, {"repeated": 1})
    for record in records:
        assert (record["chosen"][0]["content"], record["rejected"][0]["content"]) == ("A longer answer.", "Short.")
        assert record["meta"]["teachers"] == ["large", "small"] and record["meta"]["judge"] == "grader"


def test_revisions_name_their_principles_and_card_and_settings_follow_the_file(questions, tmp_path):
    own = '[[principle]]\nname = "rhyme"\n'
    own += "".join(f'{each} = {{critique = "What does not rhyme?", revision = "Rhyme."}}\n' for each in ("en", "zh"))
    (tmp_path / "own.toml").write_text(own)
    with misbehaving(write=lambda messages: revision(Asked(messages))) as server:
        words = ["revisions", f"--source={questions}", f"--teacher={server.url}"]
        run(*words, f"--output={tmp_path / 'one'}")
        run(*words, f"--output={tmp_path / 'two'}", f"--principles={tmp_path / 'own.toml'}")
    one, two = (checked(tmp_path / name, 5, {"repeated": 1}) for name in ("one", "two"))
    assert {record["meta"]["principles"][0] for record in two} == {"rhyme"}
    assert one[0]["chosen"] == two[0]["chosen"]
    assert read_card(tmp_path / "one").config != read_card(tmp_path / "two").config


def test_magpie_asks_a_model_in_memory_and_the_same_command_repeats_its_bytes(tmp_path, capsys):
    model, out = write_model(tmp_path / "model"), tmp_path / "out"
    words = ["magpie", f"--teacher={model}", f"--output={out}", "--rows=2", "--samples=4", "--instruction_tokens=6"]
    run(*words, "--max_tokens=4", "--batch_size=4", "--seed=3")
    first = files_of(out)
    said = capsys.readouterr()
    assert "0 rows kept and 4 rejected" in said.out  # an untrained model writes noise
    assert "0 of 2 conversations were kept; " in said.err and "raise --samples" in said.err
    run(*words, "--max_tokens=4", "--batch_size=4", "--seed=3")
    assert files_of(out) == first
    rejected = [json.loads(line) for line in first["rejected/part-00000-of-00001.jsonl"].decode().splitlines()]
    assert {each["step"] for each in rejected} <= {"instruction", "filters"}
    assert len({each["record"]["messages"][0]["content"] for each in rejected}) == 4  # each sample is drawn anew


def test_a_judge_of_evaluations_compares_answers_with_the_whole_conversation_before_them():
    seen = []

    def score(prompts, answers):
        seen.extend(prompts)
        return [float(len(answer)) for answer in answers]

    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} says"} for role in roles]
    compare = comparing(ScoringJudge(score, "length"))
    verdicts = compare([Comparison(messages, "en", ("abc", "a")), Comparison(messages, "zh", ("a", "b"))])
    assert [(verdict.winner, verdict.scores) for verdict in verdicts] == [("a", (3.0, 1.0)), ("tie", (1.0, 1.0))]
    assert [m["content"] for m in seen[0]] == ["system says\n\nuser says", "assistant says", "user says"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["magpie", "--teacher=http://localhost:1", "--output=o"], "give --of=PATH"),
        (["magpie", "--teacher=m", "--output=o", "--of=x"], "--of=x does nothing without an endpoint"),
        (["magpie", "--teacher=m", "--output=o", "--languages=fr"], "--languages: fr is none of en, zh"),
        (["magpie", "--teacher=m", "--output=o", "--rows=0"], "--rows = 0: give a whole number from 1"),
        (["dialogues", "--teacher=m", "--output=o", "--source=none.jsonl"], "none.jsonl"),
        (["pairs", "--teacher=m", "--output=o", "--source=s", "--answers=1"], "--answers = 1"),
        (["pairs", "--teacher=m", "--output=o", "--source=s", "--temperatures=a"], "no list of numbers"),
        (["revisions", "--teacher=m", "--output=o", "--source=s", "--principles=p.toml"], "p.toml: No such file"),
        (["revisions", "--teacher=m", "--output=o", "--source=s", "--concurrency=0"], "--concurrency 0"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_asked(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
