import collections
import filecmp
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from camelid.curate import stages
from camelid.curate.pipeline import Shard, run
from camelid.curate.rows import id_of
from camelid.curate.settings import read_config, sources_at
from camelid.curate.workers import Workers
from camelid.data.cards import read_card
from camelid.data.sources import Source, read
from camelid.errors import UserError
from camelid.tests.curate.plain_steps import STEPS, heavy_modules, nothing, texts

STEP = {
    "shout": {"use": f"{STEPS}:Shout"},
    "least": {"use": f"{STEPS}:LeastWords", "words": 3},
    "begins": {"use": f"{STEPS}:SameBeginning"},
    "halve": {"use": f"{STEPS}:Halve", "words": 2},
    "least_again": {"use": f"{STEPS}:LeastWords", "words": 2},
    "heldout": {"share": 0.2},
}
OTHER = STEP | {"least_again": {"use": f"{STEPS}:LeastWords", "words": 1}}
ORDER = ["parse", "shout", "least", "begins", "heldout", "halve", "least_again"]


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def config_of(folder: Path, **changes) -> dict:
    """A config over two files and a third source in `folder`, with all kinds of steps."""
    folder.mkdir(exist_ok=True)
    if not (folder / "a.jsonl").exists():
        write_lines(folder / "a.jsonl", texts(150, 1))
        write_lines(folder / "b.jsonl", texts(150, 2))
        write_lines(folder / "other.jsonl", texts(60, 3))
    sources = {
        "main": {"source": f"{folder}/[ab].jsonl"},
        "more": {"source": f"{folder}/other.jsonl", "licence": "mit"},
    }
    return {"sources": sources, "steps": ORDER, "step": STEP, "partitions": 8} | changes


def same_files(one: Path, other: Path) -> bool:
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) for root in (one, other)]
    return names[0] == names[1] and not filecmp.cmpfiles(one, other, names[0], shallow=False)[1:][0]


def lines_of(folder: Path, kind: str) -> list[dict]:
    return [
        json.loads(line) for path in sorted((folder / kind).glob("*.jsonl")) for line in path.open(encoding="utf-8")
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run by one process: (input folder, output folder, card, table)."""
    root = tmp_path_factory.mktemp("made")
    card, table = run(read_config(config_of(root / "in")), root / "out")
    return root / "in", root / "out", card, table


def test_every_record_that_was_read_is_kept_divided_or_rejected_with_a_reason(made):
    source, output, card, _ = made
    kept, rejected = [*lines_of(output, "train"), *lines_of(output, "heldout")], lines_of(output, "rejected")
    raw = [("main", r) for name in "ab" for r in map(json.loads, (source / f"{name}.jsonl").open())]
    raw += [("more", r) for r in map(json.loads, (source / "other.jsonl").open())]
    repeated = sum(each["reason"] == "repeated" for each in rejected)
    assert repeated == len(raw) - len({id_of(*each) for each in raw}) > 0
    origins = {each["id"].partition("-")[0] for each in kept + rejected}
    assert origins == {id_of(*each) for each in raw}
    assert sum(source.read for source in card.sources.values()) == len(raw)
    assert {each["reason"] for each in rejected} == {"repeated", "too_short", "same_beginning"}
    assert all(each["detail"] and each["record"] and each["place"] for each in rejected)
    decided = [each for each in rejected if each["reason"] == "same_beginning"]
    assert decided and all(each["columns"]["beginning"] in each["record"]["text"] for each in decided)


def test_steps_do_what_they_do_to_a_record_alone(made):
    source, output, _, _ = made
    expected = {}
    first = {}
    rows = {id_of("main", r): r["text"] for name in "ab" for r in map(json.loads, (source / f"{name}.jsonl").open())}
    rows |= {id_of("more", r): r["text"] for r in map(json.loads, (source / "other.jsonl").open())}
    for id, text in sorted(rows.items()):
        text = text.upper() if "red" in text else text
        words = text.split()
        if len(words) < 3 or first.setdefault(" ".join(words[:2]), id) != id:
            continue
        parts = [words[i : i + 2] for i in range(0, len(words), 2)]
        expected |= {f"{id}-{n}": " ".join(part) for n, part in enumerate(parts, 1) if len(part) == 2}
    kept = [*lines_of(output, "train"), *lines_of(output, "heldout")]
    assert {each["id"]: each["text"] for each in kept} == expected


def test_files_are_sorted_by_id_and_read_by_data_as_they_are(made):
    _, output, card, _ = made
    for kind in ("train", "heldout", "rejected"):
        ids = [each["id"] for each in lines_of(output, kind)]
        assert ids == sorted(ids)
    rows = lines_of(output, "train")
    found = list(read(Source(str(output / "train"))))
    assert [record["text"] for record in found] == [row["text"] for row in rows]
    assert found[0]["meta"]["id"] == rows[0]["id"]
    assert card.splits["train"].rows == len(rows)
    assert read_card(output) == card and card.damage(output) is None


def test_parts_of_a_record_are_in_one_split(made):
    sides = collections.defaultdict(set)
    for kind in ("train", "heldout"):
        for each in lines_of(made[1], kind):
            sides[each["id"].partition("-")[0]].add(kind)
    assert {len(found) for found in sides.values()} == {1}
    assert {"train", "heldout"} == {side for found in sides.values() for side in found}


def test_the_tables_of_a_run_count_what_is_on_disk(made):
    source, output, card, table = made
    rejected = lines_of(output, "rejected")
    key = lambda each: (each["step"], each["reason"], each["columns"].get("language", "unknown"))  # noqa: E731
    assert {k: n.rows for k, n in table.dropped.items()} == collections.Counter(map(key, rejected))
    assert sum(n.tokens for n in table.dropped.values()) == sum(len(each["record"]["text"]) for each in rejected)
    kept = collections.Counter(
        (each["meta"]["split"], each["meta"]["source"], each["meta"]["language"])
        for kind in ("train", "heldout")
        for each in lines_of(output, kind)
    )
    assert {k: n.rows for k, n in table.kept.items()} == kept
    rows = {
        row[0]: row[1:] for row in next(t for t in table.tables(card.steps) if t.title.startswith("What each")).rows
    }
    assert rows["read"][0] == 360 and rows["parse"][0] == 360 - rows["read"][2]
    texts_read = {r["text"] for name in ("a", "b") for r in map(json.loads, (source / f"{name}.jsonl").open())}
    more = {r["text"] for r in map(json.loads, (source / "other.jsonl").open())}
    assert rows["shout"][1] == sum("red" in text for text in [*texts_read, *more])
    assert card.steps["begins"].rejected == {"same_beginning": rows["begins"][2]}
    report = (output / "report.md").read_text(encoding="utf-8")
    for (step, reason, language), n in table.dropped.items():
        assert f"| {step} | {reason} | {language} | {n.rows:,} | {n.tokens:,} |" in report


def test_four_workers_and_other_partitions_give_the_same_bytes(made, tmp_path):
    source, output, _, _ = made
    run(read_config(config_of(source)), tmp_path / "four", workers=4)
    assert same_files(output, tmp_path / "four")
    run(read_config(config_of(source, partitions=1)), tmp_path / "one")
    for kind in ("train", "heldout", "rejected"):
        assert same_files(output / kind, tmp_path / "one" / kind)


def test_three_shards_in_turn_give_the_same_bytes(made, tmp_path):
    source, output, _, _ = made
    config, said, results = read_config(config_of(source)), [], []
    for turn in range(20):
        results.append(run(config, tmp_path / "out", shard=Shard(turn % 3, 3), tell=said.append))
        if results[-1] is not None:
            break
    assert results[0] is None and "parts of the stage read are missing" in said[1]
    assert len(results) > 3
    assert same_files(output, tmp_path / "out")


def test_a_shard_that_waits_ends_with_the_whole_dataset(made, tmp_path):
    source, output, _, _ = made
    code = (
        "import sys; from pathlib import Path; from camelid.curate.pipeline import *;"
        "from camelid.curate.settings import read_config; from camelid.tests.curate.test_pipeline import config_of;"
        "run(read_config(config_of(Path(sys.argv[1]))), Path(sys.argv[2]), shard=Shard(int(sys.argv[3]), 2), wait=True)"
    )
    arguments = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    shards = [subprocess.Popen([*arguments, str(index)], env=os.environ) for index in range(2)]
    assert [shard.wait(timeout=100) for shard in shards] == [0, 0]
    assert same_files(output, tmp_path / "out")


KILLED = """
import json, os, random, signal, shutil, sys
from pathlib import Path
from camelid.curate.pipeline import run
from camelid.curate.settings import read_config

config, output, seed = read_config(json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
rng, kills = random.Random(seed), 0
while True:
    left = rng.randrange(1, 40)
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
            continue
        print(kills)
        sys.exit(os.waitstatus_to_exitcode(status))

    def killing(function):
        def called(*args, **kwargs):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return called

    for module, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
        setattr(module, name, killing(getattr(module, name)))
    run(config, output)
    os._exit(0)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(made, tmp_path, seed):
    source, output, _, _ = made
    arguments = [json.dumps(config_of(source)), str(tmp_path / "out"), str(seed)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
    assert same_files(output, tmp_path / "out")


def test_finished_units_are_not_computed_again(made, tmp_path, monkeypatch):
    source, _, _, _ = made
    config = read_config(config_of(source))
    done = []
    original = stages.do_unit
    monkeypatch.setattr(
        "camelid.curate.pipeline.do_unit", lambda stage, n: (done.append((stage.kind, n)), original(stage, n))
    )
    monkeypatch.setattr("camelid.curate.pipeline.write_sorted", _full_disk)
    with pytest.raises(OSError, match="full"):
        run(config, tmp_path / "out")
    first = len(done)
    monkeypatch.undo()
    monkeypatch.setattr(
        "camelid.curate.pipeline.do_unit", lambda stage, n: (done.append((stage.kind, n)), original(stage, n))
    )
    run(config, tmp_path / "out")
    assert len(done) == first == 1 + 1 + 3 * 8


def _noted(monkeypatch) -> list[int]:
    """The stages, by number, of the units that are computed from now on."""
    done, original = [], stages.do_unit

    def noted(stage, number):
        done.append(stage.number)
        original(stage, number)

    monkeypatch.setattr("camelid.curate.pipeline.do_unit", noted)
    return done


def _full_disk(*args):
    raise OSError("the disk is full")


def test_a_changed_step_starts_from_the_first_stage_that_differs(made, tmp_path, monkeypatch):
    source, output, _, _ = made
    monkeypatch.setattr("camelid.curate.pipeline.write_sorted", _full_disk)
    with pytest.raises(OSError):
        run(read_config(config_of(source, step=OTHER)), tmp_path / "out")
    monkeypatch.undo()
    done, original = [], stages.do_unit
    monkeypatch.setattr(
        "camelid.curate.pipeline.do_unit", lambda stage, n: (done.append(stage.number), original(stage, n))
    )
    run(read_config(config_of(source)), tmp_path / "out")
    assert done == [4] * 8
    assert same_files(output, tmp_path / "out")


def test_a_complete_output_is_left_alone_and_another_config_is_refused(made, tmp_path):
    source, output, card, _ = made
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run(read_config(config_of(source)), output) == (card, None)
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(UserError, match="before a change of its config"):
        run(read_config(config_of(source, step=OTHER)), output)


def test_a_changed_input_is_refused_where_the_output_is_complete(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", texts(20))
    config = {"sources": {"a": {"source": str(source)}}, "steps": ["parse"], "step": {}, "partitions": 2}
    run(read_config(config), tmp_path / "out")
    write_lines(source, texts(21))
    with pytest.raises(UserError, match="its source a"):
        run(read_config(config), tmp_path / "out")


def test_a_folder_with_other_files_is_not_taken_for_a_dataset(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", texts(20))
    (tmp_path / "out" / "train").mkdir(parents=True)
    config = {"sources": {"a": {"source": str(source)}}, "steps": ["parse"], "step": {}}
    with pytest.raises(UserError, match=r"holds train, but no card\.json"):
        run(read_config(config), tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_in_a_step_names_the_step_the_row_and_the_place(tmp_path, workers):
    source = write_lines(tmp_path / "a.jsonl", [{"text": "a fox"}, {"text": "an owl"}])
    step = {"own": {"use": f"{STEPS}:Stumble"}}
    config = {"sources": {"a": {"source": str(source)}}, "steps": ["parse", "own"], "step": step, "partitions": 2}
    id = id_of("a", {"text": "an owl"})
    with pytest.raises(UserError, match=rf"step own at row {id} \(.*a.jsonl:2\) raised LookupError: an owl"):
        run(read_config(config), tmp_path / "out", workers=workers)


def test_records_that_cannot_be_read_end_the_run_or_are_rejected(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": \n\xff\n[1]\n{"text": "two"}\n')
    config = {"sources": {"a": {"source": f"{tmp_path}/a.jsonl"}}, "steps": ["parse"], "step": {}, "partitions": 1}
    with pytest.raises(UserError, match=r"a.jsonl:2: invalid JSON.*on_error=skip"):
        run(read_config(config), tmp_path / "out")
    run(read_config(config | {"on_error": "skip"}), tmp_path / "out")
    assert {each["text"] for each in lines_of(tmp_path / "out", "train")} == {"one", "two"}
    rejected = {each["place"][-1]: each for each in lines_of(tmp_path / "out", "rejected")}
    assert rejected.keys() == {"2", "3", "4"}
    assert {(each["step"], each["reason"]) for each in rejected.values()} == {("read", "unreadable")}
    assert "not UTF-8" in rejected["3"]["detail"]


def test_a_file_whose_rest_cannot_be_read_always_ends_the_run(tmp_path):
    import gzip

    whole = gzip.compress(b"".join(json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(5000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.json").write_text('[{"text": "one"}, {"text": "two"}')
    for name, said in (("a.jsonl.gz", "cannot be read from here on"), ("b.json", "ends before the list is closed")):
        config = {
            "sources": {"a": {"source": f"{tmp_path}/{name}"}},
            "steps": ["parse"],
            "step": {},
            "on_error": "skip",
        }
        with pytest.raises(UserError, match=rf"{name}.*{said}"):
            run(read_config(config), tmp_path / "out")


def test_one_output_is_used_by_one_command_or_by_shards_of_one_division(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", texts(20))
    config = read_config({"sources": {"a": {"source": str(source)}}, "steps": ["parse"], "step": {}, "partitions": 4})
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from camelid.curate.pipeline import _only_command, Shard\n"
        "with _only_command(Path(sys.argv[1]), Shard(0, 2)):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    try:
        for shard in (Shard(), Shard(0, 2), Shard(0, 3)):
            with pytest.raises(UserError, match="is in use by process"):
                run(config, out, shard=shard)
        assert run(config, out, shard=Shard(1, 2)) is None
    finally:
        holder.communicate()
    assert run(config, out, shard=Shard(0, 2)) is None
    assert run(config, out, shard=Shard(1, 2)) is not None


def test_rows_that_data_could_not_read_are_rejected_at_the_end(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [{"text": "a fox"}, {"text": "an owl"}])
    step = {"own": {"use": f"{STEPS}:Emptied"}}
    config = {"sources": {"a": {"source": str(source)}}, "steps": ["parse", "own"], "step": step, "partitions": 2}
    card, _ = run(read_config(config), tmp_path / "out")
    assert card.steps["write"].rejected == {"malformed": 1}
    [rejected] = lines_of(tmp_path / "out", "rejected")
    assert (rejected["step"], rejected["detail"]) == ("write", "text is empty")


def test_the_content_of_a_file_that_a_setting_names_decides_with_the_setting(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", texts(20))
    words = tmp_path / "words.txt"
    step = {"own": {"use": f"{STEPS}:Listed", "file": str(words)}}
    config = {"sources": {"a": {"source": str(source)}}, "steps": ["parse", "own"], "step": step, "partitions": 2}
    keys = []
    for content in ("fox", "owl", "fox"):
        words.write_text(content)
        keys.append([stage.key for stage in stages.plan_of(read_config(config), tmp_path / "work", {}).stages])
    assert keys[0] == keys[2] != keys[1]
    assert keys[0][:2] == keys[1][:2]


@pytest.mark.parametrize(
    "location, name",
    [
        ("sharegpt/*.json", "sharegpt"),
        ("a b/some chats.jsonl.gz", "some_chats"),
        ("gs://bucket/folder/", "folder"),
        ("primer:chat", "primer_chat"),
        ("*.json", "source"),
        ("语料/对话.json", "对话"),
    ],
)
def test_sources_are_named_by_their_files_or_folders(location, name):
    assert list(sources_at([location, location])) == [name, f"{name}1"]


def test_columns_of_a_table_are_read_under_the_names_of_fields(tmp_path):
    (tmp_path / "faq.csv").write_text("ask,reply,page\nTwo?,Yes.,7\n")
    columns = {"instruction": "ask", "output": "reply"}
    sources = {"faq": {"source": f"{tmp_path}/faq.csv", "columns": columns, "format": "alpaca"}}
    run(read_config({"sources": sources, "steps": ["parse"], "step": {}}), tmp_path / "out")
    [row] = lines_of(tmp_path / "out", "train")
    assert [message["content"] for message in row["messages"]] == ["Two?", "Yes."]
    assert row["meta"]["given"] == {"page": "7"} and row["meta"]["format"] == "alpaca"
    assert row["id"] == id_of("faq", {"instruction": "Two?", "output": "Yes.", "page": "7"})


def test_a_column_of_the_map_that_no_record_has_is_an_error(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"instruction": "Two?", "output": "Yes."}])
    write_lines(tmp_path / "b.jsonl", [{"ask": "Three?", "output": "No."}])
    for files, said in (("a", "in the column 'ask' of the map.*it has instruction, output"), ("[ab]", "")):
        source = {"source": f"{tmp_path}/{files}.jsonl", "columns": {"instruction": "ask"}}
        config = read_config({"sources": {"faq": source}, "steps": ["parse"], "step": {}})
        if said:
            with pytest.raises(UserError, match=rf"config.sources.faq.columns: there is no value {said}"):
                run(config, tmp_path / files)
        else:
            assert run(config, tmp_path / files)[0].splits["train"].rows == 1


def test_small_files_are_read_together_and_large_ones_alone(tmp_path, monkeypatch):
    for number in range(40):
        write_lines(tmp_path / f"{number:02d}.jsonl", [{"text": f"the text {number}"}])
    monkeypatch.setattr(stages, "UNIT_BYTES", 100)
    write_lines(tmp_path / "20.jsonl", [{"text": "a long text " * 20}])
    config = read_config({"sources": {"a": {"source": str(tmp_path)}}, "steps": ["parse"], "step": {}})
    parts = stages.plan_of(config, tmp_path / "work", {}).parts
    assert [part.location for group in parts for part in group] == sorted(map(str, tmp_path.glob("*.jsonl")))
    sizes = [[Path(part.location).stat().st_size for part in group] for group in parts]
    assert [len(group) for group in sizes if sum(group) > 100] == [1] and max(map(len, sizes)) == 4
    assert run(config, tmp_path / "out")[0].sources["a"].read == 40


@pytest.mark.parametrize("value", ["1e999", "[[-Infinity]]", "[" * 200 + "]" * 200, "9" * 5000])
def test_a_value_that_json_cannot_hold_makes_its_record_unreadable(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one", "x": {value}}}\n{{"text": "two", "x": NaN}}\n')
    config = {"sources": {"a": {"source": f"{tmp_path}/a.jsonl"}}, "steps": ["parse"], "step": {}, "partitions": 1}
    with pytest.raises(UserError, match=r"a.jsonl:1: the field x.*on_error=skip"):
        run(read_config(config), tmp_path / "out")
    run(read_config(config | {"on_error": "skip"}), tmp_path / "out")
    [row] = lines_of(tmp_path / "out", "train")
    assert row["text"] == "two" and row["id"] == id_of("a", {"text": "two", "x": None})
    assert [each["reason"] for each in lines_of(tmp_path / "out", "rejected")] == ["unreadable"]


@pytest.mark.parametrize("steps", [["length", "parse"], ["language", "heldout", "conversation"]])
def test_a_step_that_needs_parsed_records_stands_behind_one_that_parses(steps):
    config = {"sources": {"a": {"source": "a.jsonl"}}, "step": {}}
    wrong, parsing = steps[-2:]
    with pytest.raises(UserError, match=f"config.steps has {wrong} before {parsing}.*: put {parsing} before it"):
        read_config(config | {"steps": steps})
    assert read_config(config | {"steps": ["language", "personal_data", parsing, wrong]})


def test_characters_are_those_of_the_turns_alone(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [{"instruction": "Two?", "input": "12", "output": "Yes."}])
    config = {"sources": {"a": {"source": str(source)}}, "steps": ["parse"], "step": {}}
    assert run(read_config(config), tmp_path / "out")[0].splits["train"].tokens == 10


def test_workers_import_no_accelerator_library_and_give_results_in_order(made):
    with Workers(2, stages.start, stages.plan_of(read_config(config_of(made[0])), made[1], {})) as pool:
        assert list(pool.map(heavy_modules, [(0,), (1,)])) == [[], []]
        assert list(pool.map(abs, ((-n,) for n in range(30)))) == list(range(30))


def _killed(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_run_in_one_line():
    with Workers(2, nothing) as pool, pytest.raises(ChildProcessError, match="a worker process was killed"):
        list(pool.map(_killed, [(n,) for n in range(3)]))
