"""What files of others say of how answers are drawn and ended: read as transformers, vLLM and llama.cpp read them."""

import json
import warnings

import pytest

from camelid.checkpoints.interop.generation_config import (
    GenerationDefaults,
    gguf_fields,
    read_folder,
    read_gguf,
    write_config,
)

CHAT = dict(bos_token_id=1, eos_token_id=[7, 2], do_sample=True, temperature=0.6, top_p=0.9, max_length=4096)
GREEDY = dict(eos_token_id=2, do_sample=False, temperature=0.9, repetition_penalty=1.1, max_new_tokens=64)


def folder(tmp_path, said, config=None):
    if said is not None:
        text = said if isinstance(said, str) else json.dumps(said)
        (tmp_path / "generation_config.json").write_text(text)
    (tmp_path / "config.json").write_text(json.dumps(config or {}))
    return tmp_path


@pytest.mark.parametrize(
    ("said", "config", "expected"),
    [
        (CHAT, {"eos_token_id": 5}, GenerationDefaults((2, 7), temperature=0.6, top_p=0.9)),
        (GREEDY, None, GenerationDefaults((2,), temperature=0.0, repetition_penalty=1.1, max_tokens=64)),
        (
            dict(do_sample=True, top_k=-1),
            {"eos_token_id": [3, 4]},
            GenerationDefaults((3, 4), temperature=1.0, top_k=0),
        ),
        (dict(stop_strings="###", min_p=0.05, top_k=None), None, GenerationDefaults((), ("###",), min_p=0.05)),
        (dict(stop_strings=["a", "b"], eos_token_id=None), None, GenerationDefaults((), ("a", "b"))),
        (None, {"eos_token_id": 2}, GenerationDefaults((2,))),
        (None, None, GenerationDefaults()),
    ],
)
def test_a_folder_says_its_ends_and_its_sampling(tmp_path, said, config, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_folder(folder(tmp_path, said, config), 10) == expected
    assert GenerationDefaults.from_dict(json.loads(json.dumps(expected.to_dict()))) == expected


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{", "is not JSON"),
        ("[1]", r"is \[1\], not an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"temperature": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"temperature": NaN}', "temperature nan: give a number; it is not used"),
        ('{"temperature": 1e999}', "temperature inf"),
        (dict(temperature="hot"), "temperature 'hot'"),
        (dict(temperature=-1), "temperature -1"),
        (dict(top_p=0), "top_p 0"),
        (dict(top_k=1.5), "top_k 1.5"),
        (dict(top_k=[1]), r"top_k \[1\]"),
        (dict(min_p=True), "min_p True"),
        (dict(repetition_penalty=0), "repetition_penalty 0"),
        (dict(max_new_tokens=0), "max_tokens 0"),
        (dict(max_new_tokens=10**30), "max_tokens 1000"),
        (dict(eos_token_id=10), "eos_token_id: 10 of 1 given"),
        (dict(eos_token_id=-1), "eos_token_id: -1 of 1 given"),
        (dict(eos_token_id="</s>"), "eos_token_id: '</s>'"),
        (dict(eos_token_id=[[1], {"a": 2}, True]), r"\[1\], {'a': 2}, True of 3 given"),
        (dict(stop_strings=[""]), "stop_strings"),
        (dict(stop_strings=3), "stop_strings"),
        (dict(stop_strings=["a", 3]), "stop_strings"),
        (dict(stop_strings="x" * 1000), "stop_strings"),
        ('{"stop_strings": "\\ud800"}', "stop_strings"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_what_is_wrong_in_a_recommendation_is_told_and_not_used(tmp_path, said, told):
    with pytest.warns(UserWarning, match=told) as given:
        assert read_folder(folder(tmp_path, said), 10) == GenerationDefaults()
    assert len(given) == 1 and "\n" not in str(given[0].message)
    assert str(tmp_path) in str(given[0].message)


def test_an_id_too_many_leaves_the_others_and_a_thousand_are_none(tmp_path):
    with pytest.warns(UserWarning, match="eos_token_id: 10"):
        assert read_folder(folder(tmp_path, dict(eos_token_id=[2, 10])), 10).stop_ids == (2,)
    with pytest.warns(UserWarning, match="at most 256"):
        assert read_folder(folder(tmp_path, dict(eos_token_id=list(range(1000)))), 1000).stop_ids == ()


def test_a_gguf_file_ends_answers_where_llama_cpp_does():
    tokens = ["<unk>", "<s>", "</s>", "a", "<|eot_id|>", "<|eom_id|>", "b", "<end_of_turn>", "c", "[EOT]"]
    fields = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 6, "tokenizer.ggml.fim_sep_token_id": 8}
    fields |= {"tokenizer.ggml.tokens": tokens, "general.sampling.temp": 0.5, "general.sampling.top_k": 40}
    assert read_gguf(fields, "x.gguf", 10) == GenerationDefaults((2, 4, 5, 6, 7, 8, 9), temperature=0.5, top_k=40)
    with pytest.warns(UserWarning, match="x.gguf: the id of an end: 99"):
        assert read_gguf({"tokenizer.ggml.eom_token_id": 99, "tokenizer.ggml.tokens": 3}, "x.gguf", 10).stop_ids == ()


@pytest.mark.parametrize(
    ("defaults", "written"),
    [
        (GenerationDefaults(), {"bos_token_id": 1, "eos_token_id": [2, 7]}),
        (
            GenerationDefaults((7,), ("###",), temperature=0.6, top_p=0.9, max_tokens=64),
            {
                "bos_token_id": 1,
                "eos_token_id": [2, 7],
                "temperature": 0.6,
                "top_p": 0.9,
                "max_new_tokens": 64,
                "do_sample": True,
                "stop_strings": ["###"],
            },
        ),
        (
            GenerationDefaults(temperature=0.0, top_p=0.9, repetition_penalty=1.1),
            {"bos_token_id": 1, "eos_token_id": [2, 7], "repetition_penalty": 1.1, "do_sample": False},
        ),
    ],
    ids=["nothing", "chat", "greedy"],
)
def test_what_is_written_is_read_again(tmp_path, defaults, written):
    assert write_config(defaults, 1, [2, 7]) == written
    again = read_folder(folder(tmp_path, written), 10)
    lost = {"top_p": None} if defaults.temperature == 0 else {}  # of which greedy decoding makes nothing
    assert again.to_dict() == {
        name: value for name, value in (defaults.to_dict() | {"stop_ids": [2, 7]} | lost).items() if value is not None
    }


def test_a_gguf_file_has_room_for_two_ends_beside_the_end_of_text():
    defaults = GenerationDefaults((2, 5, 8, 9), temperature=0.6, repetition_penalty=1.1)
    assert gguf_fields(defaults, 2, (2, 7)) == {
        "tokenizer.ggml.eot_token_id": 7,
        "tokenizer.ggml.eom_token_id": 5,
        "general.sampling.temp": 0.6,
    }
