"""`camelid convert`: through other formats and back with the same answers, and what stands in what is written."""

import dataclasses
import hashlib
import itertools
import json
import os
import resource
import shutil

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy

import camelid
from camelid import checkpoints
from camelid.checkpoints import convert, reading
from camelid.checkpoints.interop import tensors
from camelid.checkpoints.interop.generation_config import GenerationDefaults
from camelid.data.tokenizer import Tokenizer
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.tests.checkpoints.interop import folders

QUESTIONS = ["Which colour has the red fox number 7?", "Which colour has the blue 狐狸 number 3?"]
BOS = "{{ bos_token }}"
TOKENS = np.arange(3, 45).reshape(2, 21)


@pytest.fixture(scope="module")
def chain(tuned, tmp_path_factory):
    """What becomes of a run: a Hugging Face folder, a run again, a GGUF file, a run again."""
    root = tmp_path_factory.mktemp("chain")
    paths = {"tuned": tuned}
    for name, to in {"their": "huggingface", "back": "camelid", "file.gguf": "gguf", "again": "camelid"}.items():
        paths[name] = root / name
        assert main(["convert", str([*paths.values()][-2]), str(paths[name]), f"--to={to}"]) == 0
    return paths


@pytest.fixture(scope="module")
def expected(tuned):
    model = camelid.load(tuned)
    return model, model.chat_batch(QUESTIONS, temperature=0, max_tokens=16), np.asarray(model.logits(TOKENS))


def prompt(model, question):
    messages = [{"role": "user", "content": question}]
    return model.template.encode(messages, model.tokenizer, generation_prompt=True).tokens


@pytest.mark.parametrize("name", ["their", "back", "file.gguf", "again"])
def test_every_format_gives_the_same_greedy_answers_and_logits(name, chain, expected):
    model, answers, logits = expected
    found = camelid.load(chain[name])
    assert any(answers) and found.chat_batch(QUESTIONS, temperature=0, max_tokens=16) == answers
    np.testing.assert_allclose(found.logits(TOKENS), logits, atol=1e-6)
    folders.assert_same_params(found.params, model.params)
    assert found.config.replace(unroll=model.config.unroll) == model.config
    assert found.template.source == BOS + model.template.source, "elsewhere nobody puts bos in front"
    for question in QUESTIONS:
        np.testing.assert_array_equal(prompt(found, question), prompt(model, question))
    for text in (*QUESTIONS, "the white whale\n\n  sees 3 wolves; 龘 <|im_end|></s>"):
        assert found.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert found.tokenizer.special == model.tokenizer.special


def test_what_a_model_says_of_sampling_and_of_ends_goes_with_it_into_every_format(chain, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(chain["their"], theirs)
    written = json.loads((theirs / "generation_config.json").read_text())
    model = camelid.load(chain["tuned"])
    ends = model.template.stop_ids(model.tokenizer)
    assert sorted(np.atleast_1d(written["eos_token_id"])) == list(ends) and written["bos_token_id"] == 1
    said = written | dict(eos_token_id=[*ends, 9], do_sample=True, temperature=0.5, top_p=0.75, stop_strings=["###"])
    (theirs / "generation_config.json").write_text(json.dumps(said))
    expected = GenerationDefaults((*ends, 9), ("###",), temperature=0.5, top_p=0.75)
    assert checkpoints.open(theirs).generation == expected
    assert reading.read_manifest(chain["tuned"])["generation"] == {}  # its base, a run from nothing, says nothing
    for name, to, source in (("run", "camelid", "theirs"), ("x.gguf", "gguf", "run"), ("again", "huggingface", "run")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / name), f"--to={to}"]) == 0
    assert all(checkpoints.open(tmp_path / name).generation == expected for name in ("run", "again"))
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == said
    in_gguf = checkpoints.open(tmp_path / "x.gguf").generation
    assert in_gguf == dataclasses.replace(expected, stop=())  # which the format cannot say


def test_a_manifest_says_of_which_files_a_run_was_made(chain):
    for name, source in {"back": "their", "again": "file.gguf"}.items():
        said = reading.read_manifest(chain[name])["origin"]
        assert said["path"] == str(chain[source])
        assert said["format"] == ("gguf" if source.endswith("gguf") else "huggingface")
        files = [chain[source]] if said["format"] == "gguf" else [chain[source] / f["name"] for f in said["files"]]
        assert [file["name"] for file in said["files"]] == [file.name for file in files]
        for file, record in zip(files, said["files"], strict=True):
            content = file.read_bytes()
            assert record["size"] == len(content) > 0
            assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert {file["name"] for file in reading.read_manifest(chain["back"])["origin"]["files"]} == {
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("to", ["camelid", "huggingface", "gguf"])
def test_paths_may_be_relative(to, chain, tmp_path, monkeypatch, expected):
    shutil.copytree(chain["their"], tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    name = "out.gguf" if to == "gguf" else "out"
    assert main(["convert", "source", f"runs/{name}", f"--to={to}"]) == 0
    np.testing.assert_allclose(camelid.load(f"runs/{name}").logits(TOKENS), expected[2], atol=1e-6)


def test_a_folder_for_transformers_has_tokenizer_template_and_the_ids_that_begin_and_end(chain, expected):
    model, their = expected[0], chain["their"]
    config = json.loads((their / "config.json").read_text())
    special = model.tokenizer.special
    assert config["eos_token_id"] == sorted([special["</s>"], special["<|im_end|>"]])
    assert config["bos_token_id"] == special["<s>"]
    assert (their / "chat_template.jinja").read_text() == BOS + model.template.source
    described = json.loads((their / "tokenizer_config.json").read_text())
    assert (described["bos_token"], described["eos_token"], described["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert described["add_bos_token"] is True and described["chat_template"] == BOS + model.template.source
    assert (their / "tokenizer.model").read_bytes() == model.tokenizer._files["tokenizer.model"]


@pytest.mark.parametrize("foreign, run", [("their", "tuned"), ("file.gguf", "again")])
def test_training_starts_from_foreign_files_as_from_a_run(foreign, run, chain, arguments, metrics, tmp_path):
    few = ["--config.total_steps=2", "--config.checkpoint.every_steps=2", "--config.data.heldout=0.0"]
    losses = []
    for name in (foreign, run):
        assert main([*arguments("sft", tmp_path / name, init_from=chain[name]), *few]) == 0
        losses.append([metrics(tmp_path / name)[step]["train/loss"] for step in (1, 2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][0] < 1, "what was learnt is there"
    assert camelid.load(tmp_path / foreign).chat(QUESTIONS[0], temperature=0, max_tokens=4)


def test_the_moving_average_another_type_and_another_template_can_be_asked_for(tuned, tmp_path):
    output = tmp_path / "their"
    options = ["--to=huggingface", "--weights=ema", "--dtype=bfloat16", "--template=vicuna", "--max_file_gb=0.0001"]
    assert main(["convert", str(tuned), str(output), *options]) == 0
    found, ema = camelid.load(output), camelid.load(tuned, weights="ema", dtype="bfloat16")
    folders.assert_same_params(found.params, ema.params)
    assert found.config.param_dtype == "bfloat16" and "USER" in found.template.source
    assert len(list(output.glob("*.safetensors"))) > 2
    params = camelid.load(tuned, weights="params", dtype="bfloat16").params
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (found.params, params)), strict=True))


def test_a_quantised_file_is_what_the_gguf_package_makes_of_the_parameters(tuned, tmp_path):
    output = tmp_path / "a.gguf"
    assert main(["convert", str(tuned), str(output), "--to=gguf", "--encoding=Q8_0"]) == 0
    kind = gguf.GGMLQuantizationType.Q8_0
    table = np.asarray(camelid.load(tuned).params["embed"]["embedding"])
    expected = gguf.quants.dequantize(gguf.quants.quantize(table, kind), kind)
    np.testing.assert_array_equal(camelid.load(output).params["embed"]["embedding"], expected)


@pytest.fixture
def longer(chain, tmp_path):
    """The folder with eight rows of the embedding that no token stands for."""
    folder = shutil.copytree(chain["their"], tmp_path / "longer")
    resize(folder, lambda rows: np.pad(rows, [(0, 8), (0, 0)]))
    return folder


def resize(folder, change):
    """Changes the rows of a tied network's embedding."""
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    stored = safetensors.numpy.load_file(file)
    name = "model.embed_tokens.weight"
    stored[name] = np.ascontiguousarray(change(stored[name]))
    safetensors.numpy.save_file(stored, file)
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(stored[name])}))


def test_rows_that_no_token_stands_for_are_unused_tokens_of_a_gguf_file(longer, expected, tmp_path):
    assert main(["convert", str(longer), str(tmp_path / "a.gguf"), "--to=gguf"]) == 0
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 360 == fields["llama.vocab_size"].contents()
    found = camelid.load(tmp_path / "a.gguf")
    assert found.config.vocab_size == 360
    assert found.chat_batch(QUESTIONS, temperature=0, max_tokens=16) == expected[1]


def test_a_template_that_begins_with_bos_itself_stays_as_it_is(tuned, tmp_path):
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(source)
    assert main(["convert", str(tuned), str(tmp_path / "a.gguf"), "--to=gguf", f"--template={tmp_path}/own.jinja"]) == 0
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == source
    assert "tokenizer.ggml.eot_token_id" not in fields, "turns end as texts do"


def test_a_template_that_ends_turns_by_another_token_says_so_in_a_gguf_file(chain, expected):
    fields = gguf.GGUFReader(chain["file.gguf"]).fields
    special = expected[0].tokenizer.special
    assert fields["tokenizer.ggml.eos_token_id"].contents() == special["</s>"]
    assert fields["tokenizer.ggml.eot_token_id"].contents() == special["<|im_end|>"]


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_written_anew_is_read_anew(chain, expected, tmp_path):
    shutil.copytree(chain["their"], tmp_path / "their")
    before, found = checkpoints.open(tmp_path / "their").identity, camelid.load(tmp_path / "their")
    np.testing.assert_allclose(found.logits(TOKENS), expected[2], atol=1e-6)
    other = jax.tree.map(lambda x: np.asarray(x) * 0.5, found.params)
    folders.write_folder(tmp_path / "their", found.config.replace(norm_eps=1e-3), other)
    again = camelid.load(tmp_path / "their")
    assert again.config.norm_eps == 1e-3 and checkpoints.open(tmp_path / "their").identity != before
    folders.assert_same_params(again.params, other)


@pytest.mark.parametrize("to", ["camelid", "huggingface", "gguf", "peft"])
def test_an_output_that_is_there_is_left_alone(to, tuned, tmp_path, capsys):
    output = tmp_path / ("mine.gguf" if to == "gguf" else "mine")
    output.write_text("precious")
    assert main(["convert", str(tuned), str(output), f"--to={to}"]) == 2
    assert f"{output} exists already: give another output, or move it away" in capsys.readouterr().err
    assert output.read_text() == "precious"


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(chain, tmp_path, capsys):
    folder = shutil.copytree(chain["their"], tmp_path / "shorter")
    resize(folder, lambda rows: rows[:350])
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 2
    message = f"camelid: {folder}: the tokenizer has 352 ids, but the embedding has 350 rows, none for "
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "run").exists()


def test_what_a_foreign_folder_has_wrong_is_one_line_of_every_command(chain, tmp_path, capsys, arguments):
    folder = shutil.copytree(chain["their"], tmp_path / "their")
    says = json.loads((folder / "config.json").read_text()) | {"hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(says))
    for line in (
        ["convert", str(folder), str(tmp_path / "run")],
        ["generate", str(folder), "a"],
        arguments("sft", tmp_path / "run", init_from=folder),
    ):
        assert main(line) == 2
        message = f"camelid: {folder}/config.json: hidden_act is 'gelu'; camelid supports only 'silu'\n"
        assert capsys.readouterr().err.endswith(message)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_foreign_files_have_no_moving_average(chain, tmp_path, capsys):
    assert main(["convert", str(chain["their"]), str(tmp_path / "run"), "--weights=ema"]) == 2
    assert "their has no 'ema': its run kept no moving average" in capsys.readouterr().err


def test_a_reward_model_is_not_converted(reward_run, tmp_path, capsys):
    assert main(["convert", str(reward_run), str(tmp_path / "their"), "--to=huggingface"]) == 2
    assert "holds a scalar, not a language model" in capsys.readouterr().err
    assert not (tmp_path / "their").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        (["a.safetensors"], "a.safetensors: camelid writes no .safetensors file; --to=huggingface writes"),
        (["a.bin", "--to=gguf"], "camelid writes no .bin file"),
        (["a.gguf", "--to=camelid"], "a.gguf: --to=camelid writes a folder, and the name ends in .gguf"),
        (["a.GGUF", "--to=huggingface"], "a.GGUF: --to=huggingface writes a folder, and the name ends in .gguf"),
        (["a.gguf", "--to=peft"], "--to=peft writes a folder"),
        (["a", "--to=gguf"], "a: --to=gguf writes a file: give a name that ends in .gguf"),
        (["a", "--encoding=Q8_0"], "--encoding does nothing with --to=camelid"),
        (["a.gguf", "--max_file_gb=2"], "--max_file_gb does nothing with --to=gguf"),
        (["a", "--to=huggingface", "--max_file_gb=0"], "--max_file_gb=0: give a size above 0"),
        (["a", "--to=peft", "--dtype=float16"], "--dtype does nothing with --to=peft"),
        (["a", "--base_name=meta/llama"], "--base_name does nothing with --to=camelid"),
        (["a", "--base=there"], "is a whole model, and --base is for adapters only"),
    ],
)
def test_an_output_that_contradicts_its_format_is_refused_and_nothing_written(line, message, tuned, tmp_path, capsys):
    assert main(["convert", str(tuned), str(tmp_path / line[0]), *line[1:]]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_name_that_ends_in_gguf_is_written_as_gguf_and_that_is_said(tuned, tmp_path, capsys):
    assert main(["convert", str(tuned), str(tmp_path / "a.gguf")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a.gguf: gguf, from {tuned}\n"
    assert camelid.load(tmp_path / "a.gguf").config.vocab_size == 352


def with_number(chain, folder, number):
    """The folder with one weight of a middle layer changed."""
    shutil.copytree(chain["their"], folder)
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    stored["model.layers.1.mlp.down_proj.weight"][3, 5] = number
    safetensors.numpy.save_file(stored, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "number, said",
    [
        (-70_000.0, "reaches 70000, which"),
        (np.nan, "already has 1 number(s) that are infinite or NaN, which"),
        (np.inf, "already has 1 number(s) that are infinite or NaN, which"),
    ],
)
@pytest.mark.parametrize("line", [["--dtype=float16"], ["--to=huggingface", "--dtype=float16"], ["--encoding=Q4_0"]])
def test_numbers_that_a_type_has_not_are_refused_by_name_and_nothing_is_left(
    line, number, said, chain, tmp_path, capsys
):
    folder = with_number(chain, tmp_path / "their", number)
    output = tmp_path / ("a.gguf" if "--encoding=Q4_0" in line else "a")
    assert main(["convert", str(folder), str(output), *line]) == 2
    name = "blk.1.ffn_down.weight" if "--encoding=Q4_0" in line else "model.layers.1.mlp.down_proj.weight"
    kind = "Q4_0" if "--encoding=Q4_0" in line else "float16"
    assert f"{folder}: {name} {said} {kind} cannot hold" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["their"]


def test_a_run_whose_embedding_overflows_is_refused_too(chain, tmp_path, capsys):
    folder = shutil.copytree(chain["their"], tmp_path / "their")
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    stored["model.embed_tokens.weight"][7, 7] = 1e5
    safetensors.numpy.save_file(stored, folder / "model.safetensors")
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "half"), "--dtype=float16"]) == 2
    assert "run: model.embed_tokens.weight reaches 100000, which float16" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize("to", ["camelid", "huggingface", "gguf"])
def test_outputs_may_be_read_by_all_whom_the_umask_lets(to, chain, tmp_path):
    before = os.umask(0o022)
    try:
        output = tmp_path / ("a.gguf" if to == "gguf" else "a")
        assert main(["convert", str(chain["their"]), str(output), f"--to={to}"]) == 0
    finally:
        os.umask(before)
    files = [path for path in (output, *output.rglob("*")) if path.is_file()]
    assert files and {oct(path.stat().st_mode & 0o777) for path in files} == {"0o644"}


def test_what_a_killed_conversion_left_is_written_over(chain, expected, tmp_path):
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished" / "half").write_text("x")
    assert main(["convert", str(chain["their"]), str(tmp_path / "run")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and not (tmp_path / "run" / "half").exists()


@pytest.mark.parametrize("to", [convert.to_camelid, convert.to_huggingface, convert.to_gguf])
def test_a_conversion_that_is_interrupted_leaves_nothing_behind(to, chain, tmp_path, monkeypatch):
    calls, read_part = itertools.count(), tensors.read_part

    def interrupted(*args):
        if next(calls) == 12:
            raise KeyboardInterrupt
        return read_part(*args)

    monkeypatch.setattr(tensors, "read_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        to(chain["their"], tmp_path / "output")
    assert next(calls) == 13 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["camelid", "huggingface", "gguf"])
@pytest.mark.parametrize("most", [1000, 20_000])
def test_a_conversion_onto_a_full_disk_is_one_line_and_exit_code_1_and_leaves_nothing(
    to, most, chain, tmp_path, capsys
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))  # writing more fails, as on a full disk
    output = tmp_path / ("a.gguf" if to == "gguf" else "a")
    try:
        assert main(["convert", str(chain["their"]), str(output), f"--to={to}"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(output) in said and not list(tmp_path.iterdir())


def test_of_two_conversions_to_one_output_the_second_is_told_who_writes_it(chain, tmp_path, capsys):
    with convert.new_output(tmp_path / "run") as unfinished:
        unfinished.mkdir()
        assert main(["convert", str(chain["their"]), str(tmp_path / "run")]) == 2
        assert f"run is being written by process {os.getpid()} on " in capsys.readouterr().err
        assert unfinished.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_scaling_that_gguf_cannot_say_is_the_users_to_mend_and_leaves_nothing_behind(chain, tmp_path):
    folder = shutil.copytree(chain["their"], tmp_path / "their")
    says = json.loads((folder / "config.json").read_text()) | {"rope_parameters": {"rope_type": "dynamic", "factor": 2}}
    (folder / "config.json").write_text(json.dumps(says))
    with pytest.raises(
        UserError, match=r"llama\.cpp has no architecture that joins .*rope_scaling dynamic: export another"
    ):
        convert.to_gguf(folder, tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["their"]


def test_a_folder_without_a_tokenizer_is_converted_without_one(chain, tmp_path):
    folder = tmp_path / "their"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(chain["their"] / name, folder)
    convert.to_camelid(folder, tmp_path / "run")
    found = camelid.load(tmp_path / "run")
    assert found.tokenizer is None and found.template is None
    assert found.logits(TOKENS).shape == (2, 21, 352)
    assert Tokenizer.load(chain["their"]).vocab_size == 352
