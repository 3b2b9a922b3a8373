"""Audits: where rows come from, why others are not there, what leaked, and what a run was trained on."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from camelid.curate.duplicates.decontamination import Decontaminate
from camelid.curate.duplicates.evaluation_sets import EvaluationSet
from camelid.curate.duplicates.shingles import searched
from camelid.curate.ledger import audit
from camelid.curate.ledger.lineage import lines_of, origins_of, row_of
from camelid.curate.ledger.mixing import Part, mix
from camelid.curate.pipeline import run as run_engine
from camelid.curate.rows import Row
from camelid.curate.settings import read_config
from camelid.data.cards import read_card
from camelid.data.formats import parse
from camelid.errors import UserError
from camelid.launch import run_audit
from camelid.launch.cli import main
from camelid.launch.run_audit import RunAudit
from camelid.settings.config_files import load_config

from .datasets import lines, make

TINY = Path(__file__).parents[1] / "tiny.py"
TALK = [(f"What is {n} plus {n + 1} in the book?", f"It is {2 * n + 1}, as page {n} says.") for n in range(40)]


@pytest.fixture
def folders(tmp_path):
    """Two datasets, one of them cleaned again by the engine, and the mixture of both."""
    make(tmp_path / "sums", TALK, teacher="gpt-4", heldout=2, rejected=3)
    make(
        tmp_path / "poems",
        [(f"Write a poem about owl {n}.", f"Owl {n} flies at night.") for n in range(20)],
        source="p",
    )
    config = {"name": "again", "sources": {"clean": {"source": str(tmp_path / "sums")}}, "steps": ["parse"]}
    run_engine(read_config(config), tmp_path / "again")
    mix([Part(tmp_path / "again"), Part(tmp_path / "poems")], tmp_path / "mix")
    return tmp_path


@pytest.fixture
def command():
    """command(*words): runs `camelid curate ...` and returns its exit code."""
    return lambda *words: main(["curate", *map(str, words)])


def test_a_row_is_read_back_as_it_was_written(folders):
    card = read_card(folders / "sums")
    for line in lines_of(folders / "sums", card, "train"):
        row = row_of(line)
        assert (row.id, row.source, row.place) == (line.found["id"], "web", line.found["meta"]["place"])
        assert row.columns == {"language": "en", "split": "train", "request": f"r{row.record['meta']['number']}"}
        assert row.record["messages"] == line.found["messages"]


def test_a_row_of_a_mixture_is_traced_through_its_parents_to_source_record_teacher_and_request(folders):
    card = read_card(folders / "mix")
    (line,) = [
        line for line in lines_of(folders / "mix", card, "train") if "What is 7 plus 8" in json.dumps(line.found)
    ]
    first, second = origins_of("mix", card, line)
    assert (first.dataset, first.source, first.details.location) == ("mix", "again/clean", str(folders / "sums"))
    assert (second.dataset, second.source, second.place) == ("mix/again/clean", "web", "web.json, record 8")
    assert (second.details.licence, second.details.teacher, second.details.terms) == ("MIT", "gpt-4", "openai-terms")
    assert second.columns["request"] == "r7"


def test_a_row_is_found_by_its_id_and_by_a_text_in_it(folders):
    wanted = lines(folders / "mix")[5]
    (by_id,) = audit.rows_by_id(folders / "mix", read_card(folders / "mix"), wanted["id"])
    assert by_id["kind"] == "train" and by_id["line"].endswith("train/part-00000-of-00001.jsonl:6")
    text = wanted["messages"][1]["content"].replace(" ", "\n", 1)
    assert audit.rows_by_text(folders / "mix", read_card(folders / "mix"), text) == [by_id]


def test_parts_of_a_split_row_are_found_by_the_id_of_the_whole(tmp_path):
    make(tmp_path / "x", TALK[:2])
    path = next((tmp_path / "x/train").iterdir())
    ids = [line["id"] for line in lines(tmp_path / "x")]
    path.write_text(path.read_text().replace(ids[0], f"{ids[0]}-1").replace(ids[1], f"{ids[0]}-2"))
    found = audit.rows_by_id(tmp_path / "x", read_card(tmp_path / "x"), ids[0])
    assert [row["id"] for row in found] == [f"{ids[0]}-1", f"{ids[0]}-2"]


def test_a_rejected_row_says_which_step_rejected_it_and_is_found_from_the_mixture(folders):
    for name in ("sums", "again", "mix"):
        (row,) = audit.rows_by_text(folders / name, read_card(folders / name), "What is 39 plus 40")
        assert row["rejected"] == {"step": "length", "reason": "too_short", "detail": "7 characters"}
        assert row["way"][0]["record"] == "web.json, record 40"


def test_a_dataset_says_whether_files_and_parents_are_as_they_were(folders):
    def state():
        report = audit.dataset_report(folders / "mix", read_card(folders / "mix"), "research")
        return report["files"], report["parents"]["poems"]["now"], report["parents"]["again"]["now"]

    assert state() == ("as they were written", "the same", "the same")
    path = folders / "poems/train/part-00000-of-00001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"owl", b"cat"))
    assert state()[1] == "train/part-00000-of-00001.jsonl has other bytes than were written"
    make(folders / "poems", TALK[:3])
    assert state()[1] == "another dataset now"
    (folders / "again/card.json").unlink()
    assert state()[2] == "gone"


def test_planted_questions_of_an_evaluation_set_are_found_with_their_rows(folders, tmp_path):
    question = "A farmer has twelve red hens and sells five of them on the market every second day of the week."
    clean = "Nobody in this dataset asks how many green bottles stand on the wall of the old mill near the river."
    (tmp_path / "exam.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": "#### 7"}) + "\n" for q in (clean, question))
    )
    make(tmp_path / "leaky", [*TALK[:5], (f"Please solve: {question.upper()}", "Seven.")])
    report = audit.leak_report(
        audit.searched_rows(tmp_path / "leaky", read_card(tmp_path / "leaky")),
        {"exam": EvaluationSet(str(tmp_path / "exam.jsonl"))},
    )
    assert report["sets"] == {"exam": {"items": 2, "leaked": {"train": 1}, "unchecked": 0}}
    (leaked,) = report["leaked"]
    (row,) = [line for line in lines(tmp_path / "leaky") if "Seven." in json.dumps(line)]
    assert leaked["item"] == "exam.jsonl:2" and [hit["row"] for hit in leaked["found"]] == [row["id"]]


CELSIUS = {
    "instruction": "Convert a temperature in Celsius to Fahrenheit given the temperature in Celsius.",
    "input": "25",
}
SHORT = {"instruction": "Translate to French:", "input": "The cat sleeps."}


@pytest.mark.parametrize("task", [CELSIUS, SHORT], ids=["eight to twelve words", "fewer than eight words"])
@pytest.mark.parametrize("in_evaluation", ["two fields", "one text"])
@pytest.mark.parametrize("in_row", ["two fields", "one text"])
def test_an_instruction_with_its_input_is_one_text(tmp_path, task, in_evaluation, in_row):
    one = {"instruction": f"{task['instruction']}\n\n{task['input']}", "input": ""}
    raw = {name: (task if name == "two fields" else one) | {"output": "Done."} for name in ("two fields", "one text")}
    other = {"instruction": task["instruction"], "input": "Another one.", "output": "Done."}
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (raw[in_evaluation], other)))
    sets = {"exam": EvaluationSet(str(tmp_path / "exam.jsonl"))}
    row = audit.Searched("r", "train", searched(parse(raw[in_row])))
    report = audit.leak_report([row], sets)
    assert [(each["item"], each["rows"]) for each in report["leaked"]] == [("exam.jsonl:1", 1)]
    rejected = Decontaminate(sets)(Row("r", parse(raw[in_row]), "s", "p"))
    assert rejected.reason == "leaks_evaluation" and "exam.jsonl:1" in rejected.detail


def test_held_out_rows_that_leak_are_counted_apart(tmp_path):
    questions = [
        f"How many {fruit} does the tall miller carry up the hill on a rainy morning?" for fruit in ("figs", "nuts")
    ]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    make(tmp_path / "d", [(questions[0], "Two."), (f"{questions[1]} Now.", "Six."), (questions[1], "Six.")], heldout=1)
    sets = {"exam": EvaluationSet(str(tmp_path / "exam.jsonl"))}
    report = audit.leak_report(audit.searched_rows(tmp_path / "d", read_card(tmp_path / "d")), sets)
    assert report["rows"] == {"train": 2, "heldout": 1}
    assert report["sets"]["exam"]["leaked"] == {"train": 1, "heldout": 1}
    assert [{hit["split"] for hit in each["found"]} for each in report["leaked"]] == [{"heldout"}, {"train"}]


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(folders, corpus, monkeypatch):
    """A run of 5 steps on the mixture and on other files, as its checkpoint names it; nothing is trained."""
    from camelid.data.templates import load_template
    from camelid.data.tokenizer import Tokenizer
    from camelid.settings.sections import to_config
    from camelid.train.batches import data_of
    from camelid.train.ledger import trained_datasets

    config = load_config(f"{TINY}:root={corpus},recipe=sft,init_from=nowhere", [])
    config.data.mixture = {
        "mix": {"source": str(folders / "mix"), "format": "auto", "weight": 2.0, "columns": None},
        "plain": {"source": f"{corpus}/chat.jsonl", "format": "alpaca", "weight": 1.0, "columns": None},
    }
    config.data.batch_size, config.data.seq_len, config.data.cache_dir = 4, 96, str(folders / "cache")
    settings = run_audit.read_config(config)
    tokenizer, template = Tokenizer.load(corpus / "tokenizer"), load_template("chatml")
    batches, _ = data_of(settings.data, tokenizer, template, settings.seed)
    manifest = {
        "config": json.loads(to_config(settings).to_json()),
        "step": 5,
        "total_steps": 24,
        "data_fingerprint": batches.fingerprint,
        "datasets": trained_datasets(settings),
    }
    checkpoint = SimpleNamespace(manifest=manifest, tokenizer=tokenizer, template=template)
    monkeypatch.setattr(run_audit, "open_checkpoint", lambda path: checkpoint)
    return SimpleNamespace(batches=batches, manifest=manifest, tokenizer=tokenizer, folder=folders)


def test_the_tokens_of_each_source_are_those_of_the_batches(run):
    report = RunAudit("run").report("research")
    by_source = {each["source"]: each for each in report["sources"]}
    assert set(by_source) == {"mix/again/clean", "mix/poems/p", "plain"}
    batches = [run.batches[step] for step in range(5)]
    assert sum(each["tokens"] for each in report["sources"]) == sum(int((b["segment_ids"] > 0).sum()) for b in batches)
    assert sum(each["trained"] for each in report["sources"]) == sum(int(b["loss_mask"].sum()) for b in batches)
    owls = 0  # trained tokens of the poems, counted in the batches
    for batch in batches:
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                here = batch["segment_ids"][row] == segment
                if "poem about owl" in run.tokenizer.decode(batch["tokens"][row][here].tolist()):
                    owls += int(batch["loss_mask"][row][here].sum())
    assert by_source["mix/poems/p"]["trained"] == owls > 0
    assert sum(each["share"] for each in report["sources"]) == pytest.approx(1)


def test_counts_over_several_epochs_equal_those_of_the_batches(run):
    for name, counts in run.batches.counts(60).items():
        number = [source.name for source in run.batches.sources].index(name)
        expected = np.zeros_like(counts)
        for step in range(60):
            for row in range(4):
                which, order, row_of_epoch = run.batches.origin(step, row)
                if which == number:
                    for sample, first, count in order.row(row_of_epoch):
                        begin = int(run.batches.parts[number].cache.starts[sample]) + first + 1
                        trained = run.batches.parts[number].cache.mask(begin, begin + count).sum()
                        expected[:, sample] += (count, trained)
        assert (counts == expected).all()
    assert max(run.batches.epochs(60).values()) > 2


def test_a_row_of_a_step_is_traced_to_its_records(run):
    found_sources = set()
    for row in range(4):
        pieces = RunAudit("run").row(3, row)
        batch = run.batches[3]
        for number, piece in enumerate(pieces, 1):
            begin, end = piece["positions"]
            assert (batch["segment_ids"][row][begin:end] == number).all()
            text = run.tokenizer.decode(batch["tokens"][row][begin:end].tolist())
            answer = piece["text"].splitlines()[1]
            assert answer[:20] in text
            found_sources.add(piece["source"])
            if piece["source"] == "mix":
                assert piece["id"] in [line["id"] for line in lines(run.folder / "mix")]
                assert piece["way"][-1]["licence"] == "MIT"
    assert found_sources == {"mix", "plain"}


def test_samples_keep_their_records_where_records_are_left_out(tmp_path, corpus):
    from camelid.data.sources import Source, read
    from camelid.data.templates import load_template
    from camelid.data.text_encoder import TextEncoder
    from camelid.data.token_cache import build_cache
    from camelid.data.tokenizer import Tokenizer

    answers = ["the red fox", "", "the blue owl", "", "the green bee"]
    records = [
        {
            "kind": "chat",
            "messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": a, "train": bool(a)}],
        }
        for n, a in enumerate(answers)
    ]
    for record, answer in zip(records, answers, strict=True):
        record["messages"][1]["content"] = answer or "untrained"
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    source = Source(str(tmp_path / "x.jsonl"), heldout=0.0)
    cache = build_cache(source, "train", TextEncoder(tokenizer, load_template("chatml")), tmp_path / "cache")
    assert cache.numbers.tolist() == [0, 2, 4]
    read_again = list(read(source, "train"))
    for sample, number in enumerate(cache.numbers):
        text = tokenizer.decode(cache.tokens[cache.starts[sample] : cache.starts[sample + 1]].tolist())
        assert read_again[number]["messages"][1]["content"] in text


def test_data_that_changed_since_are_refused_and_datasets_say_so(run, folders):
    make(folders / "poems", TALK[:3])
    assert RunAudit("run").report("research")["datasets"]["mix"]["now"] == "the same"
    shutil.rmtree(folders / "mix")
    mix([Part(folders / "sums"), Part(folders / "poems")], folders / "mix")
    with pytest.raises(UserError, match="are not those that the run was trained on"):
        RunAudit("run").row(0, 0)
    report = RunAudit("run").report("research")
    assert report["sources"] == [] and "fingerprint differs" in report["unknown"]
    assert report["datasets"]["mix"]["now"] == "another dataset now"


def test_of_a_recipe_without_packed_rows_the_datasets_and_licences_are_told(folders, monkeypatch):
    config = load_config(f"{TINY.with_name('tiny_rl.py')}:recipe=dpo,init_from=nowhere", [])
    config.data.mixture = {"p": {"source": str(folders / "poems"), "format": "auto", "weight": 1.0, "columns": None}}
    said = {"config": json.loads(config.to_json()), "step": 3, "total_steps": 9, "data_fingerprint": ""}
    said["datasets"] = {"p": read_card(folders / "poems").hash}
    monkeypatch.setattr(run_audit, "open_checkpoint", lambda path: SimpleNamespace(manifest=said))
    report = RunAudit("run").report("research")
    assert report["sources"] == [] and "a run of dpo" in report["unknown"]
    assert report["datasets"]["p"]["now"] == "the same" and report["duties"]["attribution"] == ["(MIT)"]


@pytest.mark.parametrize(("step", "row"), [(-1, 0), (0, 4), (3, -1)])
def test_rows_that_no_batch_has_are_one_line(run, step, row):
    with pytest.raises(UserError, match=r"a step from 0 up and a row below 4"):
        RunAudit("run").row(step, row)


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_mixes_and_audits_and_writes_what_it_prints(folders, command, capsys):
    out = folders / "out"
    assert command("mix", folders / "again", folders / "poems", f"--output={out}", "--weights=1,1") == 0
    assert "rows in train; data.mixture reads the folder as a source" in capsys.readouterr().out
    assert command("audit", out, f"--output={folders / 'report.json'}") == 0
    printed = capsys.readouterr().out
    report = json.loads((folders / "report.json").read_text())
    assert report["files"] == "as they were written" and report["card"][:12] in printed
    assert "models that compete with OpenAI (openai-terms)" in printed
    assert command("audit", out, "--row=What is 7 plus 8 in the book?", f"--output={folders / 'row.json'}") == 0
    (row,) = json.loads((folders / "row.json").read_text())
    assert row["way"][-1]["record"] == "web.json, record 8" and "web.json, record 8" in capsys.readouterr().out


def test_a_rejected_row_with_half_a_character_is_printed_and_written(folders, command, capsys):
    make(folders / "half", [("Why?", "Since."), ("A smile \ud83d?", "Yes.")], rejected=1)
    assert command("audit", folders / "half", "--row=A smile", f"--output={folders / 'row.json'}") == 0
    assert json.loads((folders / "row.json").read_text("utf-8"))[0]["text"] == "A smile \ud83d?\nYes."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit", "mix", "--id=00"], "has the id 00"),
        (["audit", "mix", "--id=00", "--row=x"], "--id and --row are different questions"),
        (["audit", "mix", "--step=3"], "mix is a dataset, and steps are those of a training run"),
        (["audit", "nowhere"], "there is no such dataset or training run"),
        (["audit", "cut"], "card.json is damaged"),
        (["audit", "copied"], "copied is a dataset without its card.json"),
        (["audit", "mix/train"], "mix/train has neither a card.json, as datasets have, nor checkpoints"),
        (["mix", "again", "poems", "--output=x", "--weights=1"], "--weights=1: give 2 numbers"),
        (["mix", "again", "poems", "--output=x", "--weights=1,a"], "give numbers with commas"),
        (["mix", "again", "poems", "--output=x", "--allow_conflicts=all"], "allow_conflicts is 'all'"),
        (["mix", "again", "poems", "--output=x", "--use=commercial"], "--allow_conflicts=training"),
    ],
)
def test_mistakes_are_one_line(folders, command, capsys, monkeypatch, words, said):
    monkeypatch.chdir(folders)
    for name, left in (("cut", 900), ("copied", 0)):
        shutil.copytree("sums", name)
        os.truncate(f"{name}/card.json", left)
    os.remove("copied/card.json")
    assert command(*words) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1
    assert not (folders / "x/card.json").exists()


def test_the_exit_code_tells_damage_and_leaks(tmp_path, command, capsys):
    asked = "How many of the {} sheep that the old farmer of the valley sold at the market last week were white?"
    make(tmp_path / "farm", [(asked.format(n), f"{n} of them.") for n in ("seven", "eight", "nine")])
    questions, other = tmp_path / "questions.jsonl", tmp_path / "other.jsonl"
    questions.write_text(json.dumps({"instruction": asked.format("eight"), "output": "Four."}))
    other.write_text(json.dumps({"instruction": "How far is the third moon of the planet from here?", "output": "3."}))
    assert command("audit", tmp_path / "farm") == 0
    assert command("audit", tmp_path / "farm", f"--against={other}") == 0
    assert command("audit", tmp_path / "farm", f"--against={questions}", f"--against={other}") == 3
    assert "1 items of the evaluation sets are in the rows of" in capsys.readouterr().err
    [path] = (tmp_path / "farm" / "train").iterdir()
    path.write_bytes(path.read_bytes().replace(b"seven", b"SEVEN", 1))
    assert command("audit", tmp_path / "farm") == 1
    assert "farm is damaged: " in capsys.readouterr().err


def test_what_is_no_dataset_and_no_run_is_told_from_one_with_phases(tmp_path, command, capsys):
    assert command("audit", tmp_path / "none") == 2
    assert "none: there is no such dataset or training run" in capsys.readouterr().err
    for phase in ("questions", "pages"):
        (tmp_path / "faq" / phase / "checkpoints").mkdir(parents=True)
    assert command("audit", tmp_path / "faq") == 2
    assert f"it has phases: give {tmp_path}/faq/pages or {tmp_path}/faq/questions" in capsys.readouterr().err
