"""The commands that look at data and models; training and its mistakes are tested in tests/train."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from camelid.errors import UserError
from camelid.launch import phases
from camelid.launch.cli import _parser, main
from camelid.launch.commands import training
from camelid.launch.commands.arguments import keep_programs
from camelid.tests import tiny_rl
from camelid.train.loop import Interrupted, TrainingStopped

COMMANDS = [
    ["train"],
    ["tokenizer", "train"],
    ["data", "show"],
    ["data", "prepare"],
    ["eval"],
    ["generate"],
    ["chat"],
    ["serve"],
    ["router"],
    ["quickstart"],
]


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    assert f"usage: camelid {' '.join(command)}".strip() in " ".join(capsys.readouterr().out.split())


def parsers_of(parser):
    """A parser with those of all commands and actions below it."""
    yield parser
    for action in parser._actions:
        for inner in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from parsers_of(inner)


def test_no_help_shows_marks_of_its_own_formatting():
    """argparse formats the help of options, where a percent sign is written twice, but not descriptions."""
    found = {parser.prog: parser.format_help() for parser in parsers_of(_parser())}
    assert len(found) > 20
    assert not [prog for prog, text in found.items() if "%%" in text or "%(" in text]
    compare = " ".join(found["camelid compare"].split())
    assert "95% intervals" in compare and "95% intervals" in " ".join(found["camelid"].split())


def test_help_does_not_wait_for_jax():
    code = "import sys; from camelid.launch.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'jax', 'tensorflow_datasets', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


COLLECT = ["data", "collect", "x", "--source=y", "--reward=camelid.tests.tiny_rl:tens", "--output=pairs.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: command"),
        (["talk"], "invalid choice: 'talk'"),
        (["chat", "/nowhere"], "/nowhere: no such checkpoint or run directory"),
        (
            ["chat", "x", "--temprature=1"],
            "unknown argument --temprature=1; did you mean --temperature? (see `camelid chat --help`)",
        ),
        (["data", "show", "--config=x", "--stpe=1"], "did you mean --step? (see `camelid data show --help`)"),
        (["eval", "x"], "nothing to measure: give --tasks"),
        (["eval", "x", "--source=y", "--borders=9,x"], "argument --borders: invalid positions value: '9,x'"),
        (["chat", "x", "--rope=yarn"], "--rope=yarn: give a kind and a number of tokens, as in --rope=yarn:8192"),
        (["eval", "x", "--source=y", "--seq_len=1"], "--seq_len = 1: give a whole number from 2 up"),
        (["convert", "x", "model.tar.gz"], "model.tar.gz: camelid writes no .gz file"),
        ([*COLLECT, "--n=1"], "--n 1: give 2 or more"),
        ([*COLLECT, "--per_prompt=0"], "--per_prompt 0: give 1 or more"),
        ([*COLLECT, "--output=."], "--output=. is a folder"),
        (["quickstart", "--seed=-1"], "ppo: config.seed = -1: give a whole number from 0 up"),
        (["quickstart", "--pair_prompts=0"], "--pair_prompts 0: give 1 or more"),
        (["data", "prepare"], "give either --config"),
        (["data", "prepare", "--source=x.txt"], "needs --name and --output"),
        (["eval", "x", "--source=y", "--cache=int8"], "--cache and --draft do nothing here"),
        (["serve", "x", "--slots=0"], "--slots 0: give 1 or more"),
        (["router", "10.0.0.1:8000"], "10.0.0.1:8000 is no address of a server"),
        (["serve", "x", "--replicas=0"], "--replicas 0: give 1 or more"),
        (["serve", "x", "--drain_seconds=-1"], "--drain_seconds -1.0: give a number of seconds, 0 or more"),
        (["serve", "x", "--chunk=33"], "--chunk 33: give a power of two"),
        (["router", "http://a", "http://a/"], "http://a is given more than once: give each server once"),
        (["router", "http://a", "--drain_seconds=nan"], "--drain_seconds nan: give a number of seconds, 0 or more"),
        (["serve", "x", "--draft=y"], "unknown argument --draft=y"),
        (["router", "http://a/v1", "http://a"], "http://a is given more than once: give each server once"),
        (["router", "http://a:x"], "http://a:x is no address of a server"),
        (["router", "http://"], "http:// is no address of a server"),
        (["router", "http://a/v1?x=1"], "http://a/v1?x=1 is no address of a server"),
        (["serve", "x", "--api_key=sécret"], "--api_key must have ASCII letters, digits and signs alone"),
        (["router", "http://a", "--api_key="], "--api_key must have ASCII letters, digits and signs alone"),
        (["serve", "x", "--port=99999"], "--port 99999: give 0 to 65535"),
        (["router", "http://a", "--port=-1"], "--port -1: give 0 to 65535"),
        (["serve", "/nowhere", "--port=0"], "/nowhere: no such checkpoint or run directory"),
        (["generate", "x", "y", "--mesh.tensor=16"], "--mesh of 16 devices: give sizes of 1 or more"),
        (["generate", "x", "y", "--mesh.data=0"], "--mesh of 0 devices: give sizes of 1 or more"),
        (["chat", "x", "--draft_tokens=3"], "--draft_tokens=3 does nothing without --draft: give --draft"),
        (["chat", "x", "--model=y"], "--model=y does nothing without the address of a server"),
        (["chat", "http://x", "--quantize=int8"], "--quantize=int8 does nothing with a server, which loads its own"),
        (
            ["chat", "localhost:8511"],
            "localhost:8511: no such checkpoint; to talk to a server write http://localhost:85",
        ),
        (["chat", "http://127.0.0.1:9"], "http://127.0.0.1:9: Connection refused"),
        (["eval", "x", "--source=y", "--per_group=3"], "--per_group does nothing for perplexity"),
        (["eval", "x", "--tasks=primer", "--seq_len=64"], "--seq_len does nothing for primer"),
        (["eval", "x", "--source=y", "--heldout=0.5"], "--heldout = 0.5 does nothing where --split is None"),
        (["data", "prepare", "--config=x", "--name=y"], "--name=y does nothing without --source"),
        ([*COLLECT, "--keep=best", "--others=2"], "--others=2 does nothing without --keep=pairs"),
        (["train", "--config=x", "--workdir=y", "--process_id=1"], "--process_id=1 does nothing without --distributed"),
        (["quickstart", "--ppo_steps=-1"], "phase ppo: config.total_steps = -1: give "),
        (["chat", "x", "--config.seed=1"], "give --config=FILE"),
        (["tokenizer", "train", "--source=/nowhere/*.txt", "--output=x"], "/nowhere/*.txt"),
        (["tokenizer", "train", "--source=x", "--output=x", "--max_records=-1"], "max_records is -1: give 1 or more"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("camelid: ")
    assert said.count("\n") == 1
    assert says in said
    assert not list(tmp_path.glob("[!r]*"))  # but for the work directory "runs", whose lock made it


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/full/x"), 1, "No space left on device: '/full/x'"),
        (PermissionError(errno.EACCES, "Permission denied", "/lost"), 1, "Permission denied: '/lost'"),
        (MemoryError(), 1, "out of memory: in training lower config.data.batch_size"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n"),
            1,
            "allocating 9 bytes",
        ),
        (TrainingStopped("step 3: enough"), 1, "step 3: enough"),
        (Interrupted("SIGTERM ended the run", signal.SIGTERM), 143, "SIGTERM ended the run"),
        (Interrupted("Ctrl-C ended the run", signal.SIGINT), 130, "Ctrl-C ended the run"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (UserError("a mistake"), 2, "a mistake"),
        (RuntimeError("Could not determine home directory."), 2, "begins with ~ and a name that is no user's"),
    ],
    ids=repr,
)
def test_each_end_is_one_line_and_a_code_of_its_own(error, code, says, monkeypatch, capsys):
    def fail(*args):
        raise error

    monkeypatch.setattr(phases, "run", fail)
    config = f"--config={Path(__file__).parents[1]}/tiny.py:root=/nowhere"
    assert main(["train", config, "--workdir=/nowhere"]) == code
    said = capsys.readouterr().err
    assert said.startswith("camelid: ") and says in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGTERM, "camelid: ended by SIGTERM\n"),
        (signal.SIGHUP, "camelid: the terminal was closed\n"),
        (signal.SIGINT, "camelid: interrupted\n"),
    ],
)
def test_a_signal_ends_a_command_in_one_line_and_takes_away_what_is_half_done(number, says, tmp_path, capsys):
    before = signal.getsignal(number)
    handled = []

    def run(args):
        (tmp_path / "half").write_text("")
        try:
            signal.raise_signal(number)
        finally:
            handled.append(os.remove(tmp_path / "half"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_train", run)
        assert main(["train", "--config=x", "--workdir=y"]) == 128 + number
    assert capsys.readouterr().err == says and handled and signal.getsignal(number) == before


def test_a_signal_in_the_middle_of_an_import_is_not_lost(tmp_path):
    """C extensions swallow an exception that a signal raises while they are imported, or crash on it."""
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    code = "import sys, types; from camelid.launch import cli; run = lambda args: __import__('swallows') and 0; "
    code += "cli._parse = lambda argv: types.SimpleNamespace(run=run); "
    code += "sys.exit(cli.main())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (130, "camelid: interrupted\n")


def test_what_standard_output_cannot_encode_does_not_end_a_command(tmp_path):
    (tmp_path / "a.txt").write_text("狐狸 the fox " * 50)
    code = "import sys; from camelid.launch.cli import main; sys.exit(main())"
    command = ["tokenizer", "train", f"--source={tmp_path}/a.txt", "--vocab_size=280", f"--output={tmp_path}/狐狸"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout[:-1]) == (0, f"280 pieces in {tmp_path}/??"), ended.stderr


def test_a_closed_pipe_is_one_line_and_exit_code_1(tmp_path):
    (tmp_path / "x.txt").write_text("\n\n".join(f"text {i}" for i in range(9)))
    code = "import sys; from camelid.launch.cli import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "data",
        "prepare",
        f"--source={tmp_path}/x.txt",
        "--name=x",
        "--output",
        tmp_path,
    ]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr.splitlines()[-1:]) == (
        1,
        ["camelid: standard output was closed before all of it was written"],
    ), ended.stderr


@pytest.mark.parametrize(
    "command", [["generate", "x", "hi"], ["chat", "x"], ["eval", "x"], ["data", "show", "--config=x"]]
)
def test_a_command_whose_answer_nobody_could_read_is_not_begun(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)  # as of `>&-`
    assert main(command) == 1
    assert capsys.readouterr().err == "camelid: standard output was closed before all of it was written\n"


def test_a_tokenizer_is_trained_on_several_sources(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the quick brown fox " * 50)
    (tmp_path / "b.jsonl").write_text(json.dumps({"instruction": "say 你好", "input": "now", "output": "你好"}))
    sources = [f"--source={tmp_path / name}" for name in ("a.txt", "b.jsonl")]
    assert main(["tokenizer", "train", *sources, "--vocab_size=300", "--special=<|x|>", f"--output={tmp_path}"]) == 0
    from camelid import Tokenizer

    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 300
    assert "<|x|>" in tokenizer.special
    assert tokenizer.decode(tokenizer.encode("你好 fox")) == "你好 fox"


def test_a_dataset_is_prepared_and_read_back(corpus, tmp_path, capsys):
    source = corpus / "chat.jsonl"
    assert main(["data", "prepare", f"--source={source}", "--name=chat", f"--output={tmp_path}", "--heldout=0.2"]) == 0
    folder, said = capsys.readouterr().out.splitlines()[-1].split(": ")
    assert said == f"read it as tfds:{folder}:train and tfds:{folder}:heldout"
    from camelid.data.sources import Source, read

    counts = [len(list(read(Source(f"tfds:{folder}:{split}")))) for split in ("train", "heldout")]
    assert sum(counts) == len(source.read_text().splitlines())
    assert counts[1] > 0
    (tmp_path / "one.txt").write_text("a document")
    assert main(["data", "prepare", f"--source={tmp_path}/one.txt", "--name=one", f"--output={tmp_path}"]) == 0
    folder, said = capsys.readouterr().out.splitlines()[-1].split(": ")
    assert said == f"read it as tfds:{folder}:train", "there is nothing to hold out"


def test_the_caches_of_a_config_are_filled_and_counted(arguments, tmp_path, capsys):
    config = next(a for a in arguments("pretrain", tmp_path) if a.startswith("--config="))
    assert main(["data", "prepare", config]) == 0
    assert "tokens" in capsys.readouterr().out


def test_rows_of_a_batch_are_shown_with_what_is_trained_on(arguments, pretrained, tmp_path, capsys):
    config = next(a for a in arguments("sft", tmp_path, init_from=pretrained) if a.startswith("--config="))
    assert main(["data", "show", config, "--step=3", "--rows=1"]) == 0
    assert "<|im_start|>" in capsys.readouterr().out
    assert main(["data", "show", config, "--rows=99"]) == 2
    capsys.readouterr()
    for command in ("show", "prepare"):
        assert main(["data", command, config, "--config.optim.lr=-1"]) == 2
        assert "config.optim.lr = -1.0: give a number from 0" in capsys.readouterr().err
    dpo = f"--config={Path(tiny_rl.__file__)}:root={tmp_path},recipe=dpo,init_from={pretrained}"
    assert main(["data", "show", dpo]) == 2
    assert "config.recipe is dpo: `data show` and `data prepare` need pretrain or sft" in capsys.readouterr().err


def test_a_model_generates_answers_and_is_measured(tuned, corpus, tmp_path, capsys):
    assert main(["generate", str(tuned), "the red fox", "--max_tokens=5", "--n=2", "--weights=ema"]) == 0
    assert capsys.readouterr().out.count("\n") >= 2
    assert main(["generate", str(tuned), "Which colour?", "--chat", "--max_tokens=5", "--temperature=0"]) == 0
    where = [f"--source={corpus / 'chat.jsonl'}", f"--cache_dir={tmp_path}"]
    assert main(["eval", str(tuned), *where, "--split=heldout", "--heldout=0.1"]) == 0
    assert "perplexity" in capsys.readouterr().out
    where[0] = f"--source={tmp_path / 'bad.jsonl'}"
    (tmp_path / "bad.jsonl").write_text((corpus / "chat.jsonl").read_text() + "\nno json\n")
    assert main(["eval", str(tuned), *where]) == 2
    assert capsys.readouterr().err.endswith("(--on_error=skip leaves such records out)\n")
    assert main(["eval", str(tuned), *where, "--on_error=skip"]) == 0
    told = capsys.readouterr()
    assert f"1 left out: {tmp_path}/bad.jsonl:" in told.err and "perplexity" in told.out


def test_bad_records_stop_a_command_or_are_counted_and_listed(tmp_path, capsys):
    source = tmp_path / "x.jsonl"
    lines = [json.dumps({"instruction": f"ask {i}", "input": "", "output": "an answer"}) for i in range(20)]
    source.write_text("\n".join([*lines, '{"instruction": "", "output": "b"}', "no json", *lines[:1]]))
    prepare = ["data", "prepare", f"--source={source}", "--name=x", f"--output={tmp_path}"]
    train = ["tokenizer", "train", f"--source={source}", "--vocab_size=280", f"--output={tmp_path}"]
    for command in (prepare, train):
        assert main(command) == 2
        problem = capsys.readouterr().err
        assert f"{source}:21" in problem and problem.endswith("(--on_error=skip leaves such records out)\n")
        assert main([*command, "--max_record_bytes=60"]) == 2
        assert "more than 60 bytes (--max_record_bytes=N raises the limit)" in capsys.readouterr().err
        assert main([*command, "--on_error=skip"]) == 0
        said = capsys.readouterr().out
        assert "21 records read, 2 left out" in said
        assert f"{source}:21: instruction is empty" in said and f"{source}:22" in said


def test_columns_on_the_command_line_name_the_fields_of_a_table(tuned, tmp_path, capsys):
    table = tmp_path / "x.csv"
    table.write_text("Ask,Tell\nWho?,Ann.\nWhere?,Here.\n")
    prepare = ["data", "prepare", f"--source={table}", "--name=x", f"--output={tmp_path}", "--heldout=0"]
    for command in (prepare, ["eval", str(tuned), f"--source={table}"]):
        assert main(command) == 2
        assert "no format has the fields Ask, Tell" in capsys.readouterr().err
        assert main([*command, '--columns={"instruction": "Ask", "output": "Tel"}']) == 2
        assert "no value in the column 'Tel' of the map; did you mean Tell?" in capsys.readouterr().err
        assert main([*command, '--columns={"instruction": "Ask", "output": "Tell"}']) == 0
        capsys.readouterr()


def test_preparing_a_config_lists_what_its_sources_were_read_without(arguments, corpus, tmp_path, capsys):
    config = next(a for a in arguments("pretrain", tmp_path) if a.startswith("--config="))
    bad = tmp_path / "bad.jsonl"
    bad.write_text((corpus / "text.jsonl").read_text() + "\nno json\n")
    changes = [f"--config.data.mixture.text.source={bad}", f"--config.data.cache_dir={tmp_path}"]
    assert main(["data", "prepare", config, *changes]) == 2
    problem = capsys.readouterr().err
    assert f"{bad}:301" in problem and problem.endswith("(--config.data.on_error=skip leaves such records out)\n")
    long = ["--config.data.max_record_bytes=20", "--config.data.on_error=raise"]
    assert main(["data", "prepare", config, *changes, *long]) == 2
    assert "more than 20 bytes (--config.data.max_record_bytes=N raises the limit)" in capsys.readouterr().err
    assert main(["data", "prepare", config, *changes, "--config.data.on_error=skip"]) == 0
    assert f"{bad}:301" in capsys.readouterr().out


def test_compiled_programs_are_kept_in_the_users_cache_unless_jax_is_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "compilation_cache_max_size")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    try:
        for chosen in (None, str(tmp_path / "own")):
            jax.config.update("jax_compilation_cache_dir", chosen)
            keep_programs()
            assert jax.config.jax_compilation_cache_dir == (chosen or str(tmp_path / ".cache/camelid/compiled"))
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
