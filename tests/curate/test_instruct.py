"""Self-instruct keeps or rejects every task that it reads, in a way that follows from settings and replies alone."""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from camelid.curate.dataset import write_dataset
from camelid.curate.rows import Rejected, Row
from camelid.curate.teachers.instruct import Instruct, Wanted, instruct, task_of
from camelid.curate.teachers.instruct_prompts import FOLDER, Prompts
from camelid.curate.teachers.instruct_report import about, ledger_of, rounds_of
from camelid.curate.teachers.rouge import rouge_l, rouge_words
from camelid.curate.teachers.seeds import Task, read_seeds
from camelid.data.cards import Count, read_card
from camelid.data.sources import Source
from camelid.data.sources import read as read_source
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.settings.config_files import load_config
from camelid.settings.sections import read
from camelid.tests.curate import killed_command
from camelid.tests.curate.simulated_teacher import Teacher, answer, write_seeds
from camelid.tests.serve.misbehaving import digest_of, misbehaving

METHODS = ["alpaca", "self_instruct", "instruction_wild"]


@pytest.fixture
def wanted(tmp_path):
    for language in ("en", "zh"):
        write_seeds(tmp_path / f"{language}.jsonl", language)
    return {"en": Wanted(f"{tmp_path}/en.jsonl", 40), "zh": Wanted(f"{tmp_path}/zh.jsonl", 25)}


def cut(text):
    return "length" if digest_of(text) % 5 == 0 else "stop"


def make(wanted, teacher=None, **settings):
    return instruct(Instruct(languages=wanted, round_requests=8, **settings), teacher or Teacher(finish=cut))


@pytest.mark.parametrize("method", METHODS)
def test_each_task_in_the_replies_is_kept_or_rejected_once(method, wanted):
    teacher = Teacher(finish=cut)
    made = make(wanted, teacher, method=method, shown_kept=2)
    assert Counter(row.source for row in made.rows) == {"self-instruct.en": 40, "self-instruct.zh": 25}
    ids = [row.id for row in made.rows] + [each.row.id for each in made.rejected]
    assert len(set(ids)) == len(ids)
    assert sum(each.kept for each in made.rounds) == len(made.rows)
    assert sum(each.rejected.total() for each in made.rounds) == len(made.rejected)
    places = Counter(
        (row.columns["request"], row.columns["task"]) for row in [*made.rows, *(r.row for r in made.rejected)]
    )
    assert set(places.values()) == {1}
    lists = [key for key in teacher.asked if key in {request for request, _ in places}]
    for key in lists:  # the tasks of a reply have the numbers 1, 2, 3, ...
        numbers = sorted(task for request, task in places if request == key)
        assert numbers == list(range(1, len(numbers) + 1))
    assert len(lists) == sum(each.requests for each in made.rounds) and len(set(teacher.asked)) == len(teacher.asked)
    assert len(made.teacher.replies) == len(teacher.asked) == made.teacher.prompt_tokens / 100
    assert {"filters", "novelty", "answer", "rows"} <= {each.step for each in made.rejected}


@pytest.mark.parametrize("method", METHODS)
def test_the_kept_tasks_are_those_that_comparing_all_pairs_keeps(method, wanted):
    teacher = Teacher(finish=cut)
    made = make({"zh": replace(wanted["zh"], rows=60)}, teacher, method=method, threshold=0.5)
    reasons = {each.row.id: each.reason for each in made.rejected}
    rows = [row for row in [*made.rows, *(each.row for each in made.rejected)] if "rouge_l" in row.columns]
    rows.sort(key=lambda row: (teacher.asked.index(row.columns["request"]), row.columns["task"]))
    pool = [rouge_words(seed.instruction) for seed in read_seeds(wanted["zh"].seeds)]
    for row in rows:
        words = rouge_words(instruction_of(row))
        best = max(rouge_l(words, other) for other in pool)
        assert round(best, 4) == row.columns["rouge_l"]
        assert (reasons.get(row.id) == "similar") == (best > 0.5)
        if reasons.get(row.id) != "similar" and (method != "alpaca" or reasons.get(row.id) != "enough"):
            pool.append(words)
    assert 5 < Counter(reasons.values())["similar"] < len(rows)


def instruction_of(row):
    return row.record["instruction"] if "instruction" in row.record else task_of(row.record).instruction


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_write_the_same_bytes_and_another_seed_shows_other_examples(method, wanted, tmp_path):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = Instruct(languages=wanted, round_requests=8, method=method, seed=seed)
        made = instruct(settings, Teacher(finish=cut))
        write_dataset(tmp_path / name, made.rows, made.rejected, about(made, settings, "simulated"))
        runs.append({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()})
    assert runs[0] == runs[1] and runs[0] != runs[2]
    first = instruct(replace(settings, seed=0), Teacher(finish=cut))
    records = list(read_source(Source(str(tmp_path / "a"))))
    assert [record["kind"] for record in records] == ["chat"] * len(first.rows)
    for name, source in read_card(tmp_path / "a").sources.items():
        kept = sum(row.source == name for row in first.rows)
        rejected = sum(each.row.source == name for each in first.rejected)
        assert (source.kept.rows, source.read, source.teacher) == (kept, kept + rejected, "simulated")
        assert kept > 20 and rejected > 10
    assert "tokens of prompts" in (tmp_path / "a" / "report.md").read_text()


def test_the_card_has_the_licence_of_each_language(wanted, tmp_path):
    settings = Instruct(
        languages={"en": replace(wanted["en"], licence="cc-by-4.0"), "zh": wanted["zh"]}, round_requests=8
    )
    made = instruct(settings, Teacher(finish=lambda text: "length"))  # no reply is whole: no row is kept
    write_dataset(tmp_path / "a", [], made.rejected, about(made, settings, "simulated"))
    sources = read_card(tmp_path / "a").sources
    assert {name: (each.licence, each.kept) for name, each in sources.items()} == {
        "self-instruct.en": ("cc-by-4.0", Count()),
        "self-instruct.zh": (None, Count()),
    }


def test_later_rounds_show_kept_tasks_and_earlier_ones_seeds_alone(wanted):
    messages = []

    def write(asked):
        messages.append(asked[-1]["content"])
        return answer(asked)

    made = make({"en": wanted["en"]}, Teacher(write), shown_seeds=2, shown_kept=2)
    seeds = {seed.instruction for seed in read_seeds(wanted["en"].seeds)}
    kept_before = {1: set()}
    for each in made.rounds:
        number = each.number
        kept_before[number + 1] = kept_before[number] | {
            task_of(row.record).instruction for row in made.rows if row.columns["round"] == number
        }
    place = 0
    for each in made.rounds:
        for text in messages[place : place + each.requests]:
            shown = re.findall(r"^\d+\. Instruction: (.*)$", text, re.MULTILINE)
            own = [instruction for instruction in shown if instruction in kept_before[each.number]]
            assert len([instruction for instruction in shown if instruction in seeds]) == 2
            assert len(own) == (2 if each.number > 1 else 0) and len(shown) == 2 + len(own)
        place += each.requests


def test_requests_of_equal_content_have_replies_of_their_own(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"instruction": "Name a river.", "output": "Rhine"}')
    teacher = Teacher()
    made = make({"en": Wanted(f"{tmp_path}/one.jsonl", 30)}, teacher)
    contents, numbers = zip(*(key.rsplit("-", 1) for key in teacher.asked), strict=True)
    assert len(set(contents)) == 1 and sorted(map(int, numbers)) == list(range(len(teacher.asked)))
    # the teacher says the same to each of them: the tasks of its first answer are new, all others similar
    assert {row.columns["request"] for row in made.rows} == {teacher.asked[0]}
    assert made.ended["en"].startswith(f"{len(made.rows)} of 30 rows: round 2 brought too few (0 of ")


def test_a_round_that_brings_too_few_ends_the_language_and_says_why(wanted):
    made = make(wanted, Teacher(lambda messages: "I cannot help."), requests=None)
    assert made.rows == []
    said = "0 of 40 rows: round 1 brought too few (0 of 8 tasks kept; unreadable 8)"
    assert made.ended["en"] == said and said in rounds_of(made)
    assert make(wanted, Teacher(), least_share=1.0).rounds[-1].number == 1


def test_the_limit_of_requests_holds_for_all_languages_together(wanted):
    teacher = Teacher()
    made = make(wanted, teacher, requests=11)
    assert [(each.language, each.requests) for each in made.rounds] == [("en", 8), ("zh", 3)]
    assert len(teacher.asked) == 11 and made.ended["zh"].endswith("rows: all 11 requests were asked")


@dataclass(frozen=True)
class Gentle:
    """A step of the user's own: masks a word, and rejects what is unsafe."""

    reasons: ClassVar = ("unsafe",)
    word: str = "storm"

    def __call__(self, row):
        text = json.dumps(row.record, ensure_ascii=False)
        if self.word in text:
            return Rejected("unsafe", self.word)
        return row.with_(json.loads(text.replace("rivers", "streams")), gentle=True)


@dataclass(frozen=True)
class Doubling:
    reasons: ClassVar = ()

    def __call__(self, row):
        return row.split([row.record, row.record])


def test_tasks_pass_steps_before_they_are_compared(wanted, tmp_path):
    step = {"safe": {"use": f"{__name__}:Gentle", "word": "birds"}, "heldout": {"share": 0.3}}
    settings = Instruct(languages={"en": wanted["en"]}, round_requests=8, steps=["safe", "heldout"], step=step)
    made = instruct(settings, Teacher())
    assert Counter(each.step for each in made.rejected)["safe"] > 3
    texts = [task_of(row.record).instruction for row in made.rows]
    assert not any("birds" in text or "rivers" in text for text in texts) and any("streams" in text for text in texts)
    card, _ = write_dataset(tmp_path / "out", made.rows, made.rejected, about(made, settings, "simulated"))
    assert card.steps["safe"].settings == {"word": "birds"} and card.steps["safe"].rejected["unsafe"] > 3
    assert set(card.splits) == {"train", "heldout"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": ["doubling"], "step": {"doubling": {"use": f"{__name__}:Doubling"}}}, "makes several rows of one"),
        ({"steps": ["exact_duplicates"]}, "needs all rows"),
        ({"steps": ["refusal"]}, "no step 'refusal'"),
        ({"step": {"language": {"keep": ["en"]}}}, "config.step.language does nothing"),
        ({"requests": 0}, "give 1 or more"),
        ({"languages": {}}, "config.languages is empty"),
        ({"languages": {"fr": {"seeds": "x", "rows": 1}}}, "config.languages.fr: tasks can be asked for in en, zh"),
        ({"method": "alpacca"}, "did you mean alpaca"),
        ({"filters": {"least_word": 1}}, "nothing reads config.filters.least_word"),
    ],
)
def test_settings_that_cannot_be_are_errors(settings, said, wanted):
    given = {"languages": {"en": {"seeds": wanted["en"].seeds, "rows": 5}}} | settings
    with pytest.raises(UserError, match=said):
        instruct(read(given, Instruct), Teacher())


def test_the_method_alpaca_needs_seeds_with_answers(tmp_path):
    (tmp_path / "seeds.txt").write_text("Name a river.\nName a town.\n")
    wanted = {"en": Wanted(f"{tmp_path}/seeds.txt", 5)}
    with pytest.raises(UserError, match="has instructions without an answer, which the method alpaca cannot show"):
        make(wanted)
    assert make(wanted, method="instruction_wild").rows


def test_the_command_takes_overrides_without_a_config_and_seeds_without_answers(tmp_path, capsys):
    (tmp_path / "seeds.txt").write_text("Name a river of Europe.\nWrite a poem about the sea.\n")
    words = ["curate", "instruct", f"--seeds={tmp_path}/seeds.txt", "--rows=2", "--config.round_requests=1"]
    with misbehaving(write=answer) as server:
        words += [f"--teacher={server.url}"]
        assert main([*words, f"--output={tmp_path}/out"]) == 0
        assert "seeds.txt has seeds without an answer: config.method is self_instruct" in capsys.readouterr().err
        assert main([*words, f"--output={tmp_path}/wild", "--config.method=instruction_wild"]) == 0
        assert "self_instruct" not in capsys.readouterr().err
        assert main([*words, f"--output={tmp_path}/whole", "--config.method=alpaca"]) == 2
        assert "or --config.method=self_instruct" in capsys.readouterr().err
    assert read_card(tmp_path / "out").splits["train"].rows == 2 and read_card(tmp_path / "wild").splits["train"].rows


def test_text_that_utf8_cannot_hold_is_rejected_and_written(wanted, tmp_path):
    settings = Instruct(languages={"en": wanted["en"]}, requests=1, round_requests=1)
    made = instruct(settings, Teacher(lambda messages: "1. Instruction: Sort these three numbers.\n1. Output: \ud800"))
    assert [(each.step, each.reason) for each in made.rejected] == [("answer", "unreadable")]
    write_dataset(tmp_path / "out", made.rows, made.rejected, about(made, settings, "simulated"))
    [path] = (tmp_path / "out" / "rejected").iterdir()
    assert json.loads(path.read_text())["record"]["output"] == "\ud800"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompts_show_the_tasks_and_say_what_is_wanted(language):
    prompts, tasks = Prompts(), [Task("Sort.", "3 1", "1 3"), Task("Name a river.\nAny.", "", "Rhine")]
    [system, user] = prompts.messages("tasks", language, tasks=tasks, count=17)
    assert (system["role"], user["role"]) == ("system", "user")
    labels = ("Instruction: ", "Input:", "Output:") if language == "en" else ("指令：", "输入：", "输出：")
    for number, task in enumerate(tasks, 1):
        empty = "<noinput>" if language == "en" else "<无输入>"
        given = [f"{number}. {label}" for label in labels]
        given = zip(given, ("", "\n", "\n"), (task.instruction, task.input or empty, task.output), strict=True)
        assert "".join(f"{label}{gap}{text}\n" for label, gap, text in given).strip() in user["content"]
    assert "17" in user["content"] and "19" in user["content"]
    variants = [prompts.messages("instructions", language, tasks=tasks, count=9, with_input=w) for w in (True, False)]
    for [_, user] in variants:
        assert "1. Sort.\n2. Name a river. Any." in user["content"] and "11" in user["content"]
    assert variants[0] != variants[1]
    [_, user] = prompts.messages("instance", language, tasks=tasks[:1], instruction="Do it.")
    assert "3 1" in user["content"] and "Do it." in user["content"]


def test_own_prompts_replace_those_of_the_project_and_faults_in_them_are_told(wanted, tmp_path):
    own = tmp_path / "prompts"
    own.mkdir()
    with pytest.raises(
        UserError, match=r"tasks.en.toml: No such file.*a folder of prompts has tasks.en.toml and tasks.zh.toml"
    ):
        make(wanted, prompts=str(own))
    for path in FOLDER.glob("tasks.*.toml"):
        (own / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (own / "tasks.en.toml").write_text(
        'system = ""\nuser = "1. Instruction: {{ tasks[0].instruction }} {{ count }} own"'
    )
    asked = []
    make({"en": wanted["en"]}, Teacher(lambda messages: asked.append(messages) or "x"), prompts=str(own))
    assert all(len(messages) == 1 and messages[0]["content"].endswith(" 17 own") for messages in asked)
    for content, said in [
        ("system = ", "no TOML"),
        ('user = "x"', "there is no text `system`"),
        ('system = ""\nuser = "{% if %}"', "line 1 of user"),
        ('system = ""\nuser = "{{ colour }}"', "user cannot be filled in .*'colour' is undefined"),
    ]:
        folder = tmp_path / said[:6]
        folder.mkdir()
        (folder / "tasks.en.toml").write_text(content)
        with pytest.raises(UserError, match=said):
            make({"en": wanted["en"]}, prompts=str(folder))


def test_the_ledger_adds_up_the_replies_and_their_cost(wanted):
    made = make({"en": wanted["en"]})
    words = ledger_of(made, (1.5, 6.0))
    cost = (made.teacher.prompt_tokens * 1.5 + made.teacher.completion_tokens * 6.0) / 1e6
    assert f"{len(made.teacher.replies)} replies of simulated" in words and f"They cost {cost:,.4f}" in words


CONFIGS = FOLDER.parents[2] / "configs" / "curate"


def test_the_recipes_are_those_that_were_published(wanted):
    alpaca = read(load_config(f"{CONFIGS / 'alpaca.py'}:seeds={wanted['en'].seeds}"), Instruct)
    assert (alpaca.languages["en"].rows, alpaca.shown_seeds, alpaca.method) == (52_002, 3, "alpaca")
    seeds = f"english={wanted['en'].seeds},chinese={wanted['zh'].seeds}"
    wild = read(load_config(f"{CONFIGS / 'colossalchat.py'}:{seeds},english_rows=9,chinese_rows=8"), Instruct)
    published = read(load_config(f"{CONFIGS / 'colossalchat.py'}:{seeds}"), Instruct)
    assert {name: each.rows for name, each in published.languages.items()} == {"en": 52_191, "zh": 51_504}
    made = instruct(wild, Teacher())
    assert Counter(row.columns["language"] for row in made.rows) == {"en": 9, "zh": 8}
    assert not any(task_of(row.record).input for row in made.rows)


def run(tmp_path, server, *more):
    seeds = [f"--seeds={tmp_path}/{language}.jsonl" for language in ("zh", "en")]
    arguments = [*seeds, f"--teacher={server.url}", f"--output={tmp_path / 'out'}", "--rows=12", *more]
    return killed_command.run(arguments)


def test_the_command_writes_alpaca_records_and_a_report_and_tells_the_cost(wanted, tmp_path, capsys):
    with misbehaving(write=answer) as server:
        more = ("--write_as=alpaca", f"--report={tmp_path / 'report'}", "--prompt_price=2", "--completion_price=8")
        assert run(tmp_path, server, *more) == 0
        said = capsys.readouterr()
        asked = len(server.asked)
        assert run(tmp_path, server, *more) == 0 and len(server.asked) == asked  # all of it is in the journal
    assert "24 tasks of first in" in said.out and "They cost" in said.out and "beyond_text" in said.out
    assert "round 1, zh: " in said.err and "the replies cost" in said.err
    [path] = (tmp_path / "out" / "train").iterdir()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == 24 and all(
        record.keys() == {"instruction", "input", "output", "id", "meta"} for record in records
    )
    assert {record["meta"]["teacher"] for record in records} == {"first"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        *("report.md", "diversity.json", "verbs.en.svg", "verbs.zh.svg", "lengths.svg", "rouge.svg")
    }


def test_the_command_refuses_what_cannot_be(wanted, tmp_path, capsys):
    write_seeds(tmp_path / "more.jsonl", "en")
    (tmp_path / "numbers.txt").write_text("1 + 1\n")
    with misbehaving() as server:
        for more, said in [
            (["--rows=0"], "--rows 0: give 1 or more"),
            ([f"--seeds={tmp_path / 'more.jsonl'}"], "is en, as is"),
            ([f"--seeds={tmp_path / 'numbers.txt'}"], "neither English nor Chinese"),
            (["--temperature=1"], "unknown argument --temperature"),
            (["--config=nothing.py"], "nothing.py"),
        ]:
            assert run(tmp_path, server, *more) == 2
            assert said in capsys.readouterr().err
        assert server.asked == [] and not (tmp_path / "out").exists()


def test_a_row_of_its_own_is_a_task():
    row = Row("1", {"kind": "chat", "messages": [{"role": "user", "content": "a", "input": "b"}]}, "s", "p")
    row.record["messages"].append({"role": "assistant", "content": "c"})
    assert task_of(row.record) == Task("a", "b", "c")
