"""Models on the Hugging Face Hub by name, against a server of this machine that answers as the Hub does."""

import json
import socket
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

import camelid
from camelid import checkpoints
from camelid.checkpoints import convert
from camelid.data import hub
from camelid.data.tokenizer import Tokenizer
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.tests.checkpoints.interop import folders
from camelid.tests.hub_server import HubServer

TOKENS = np.arange(3, 23).reshape(2, 10)
NOT_READ = {"pytorch_model.bin": "not asked for", "onnx/model.onnx": "x", "flax.msgpack": "x"}
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a hub: a model with a tokenizer in one file and in several, adapters on it, and GGUF files."""
    root = tmp_path_factory.mktemp("models")
    texts = [f"the {colour} fox sees {n} hens." for colour in ("red", "blue", "green") for n in range(40)]
    tokenizer = train_sentencepiece(texts, vocab_size=300, output_dir=root / "tokenizer")
    config = folders.TINY.replace(vocab_size=tokenizer.vocab_size)
    plain = folders.write_folder(root / "lab" / "plain", config)
    folders.write_folder(root / "lab" / "parts", config, max_file_bytes=20_000)
    for folder in (plain, root / "lab" / "parts"):
        tokenizer.save(folder)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        for name, text in NOT_READ.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    (plain / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "eos_token_id": tokenizer.eos_id}))
    convert.to_gguf(plain, root / "lab" / "files" / "small.Q8_0.gguf", encoding="Q8_0")
    convert.to_gguf(plain, root / "lab" / "files" / "small.F32.gguf")
    convert.to_camelid(plain, root / "lab" / "run")
    adapters = root / "lab" / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps(LORA | {"base_model_name_or_path": "lab/plain"}))
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    random = np.random.RandomState(0)
    shapes = {"A": (2, config.dim), "B": (config.n_heads * config.head_dim, 2)}
    safetensors.numpy.save_file(
        {
            name.format(i, ab): random.normal(size=shapes[ab]).astype(np.float32)
            for i in range(config.n_layers)
            for ab in "AB"
        },
        adapters / "adapter_model.safetensors",
    )
    (root / "lab" / "text").mkdir()
    (root / "lab" / "text" / "README.md").write_text("no model")
    return root


@pytest.fixture
def server(models, tmp_path, monkeypatch):
    """The hub of `models`, with an empty cache, in an empty working directory."""
    from huggingface_hub import constants

    found = HubServer(models)
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    hub._fetch.cache_clear()
    yield found
    hub._fetch.cache_clear()
    found.close()


def names(server, repository):
    """The files of a repository that were fetched."""
    return {file.removeprefix(f"{repository}/") for file in server.fetched if file.startswith(f"{repository}/")}


def test_a_name_opens_the_model_and_only_files_that_are_read_are_fetched(server, models, capsys):
    found = camelid.load("lab/plain")
    expected = camelid.load(models / "lab" / "plain")
    np.testing.assert_array_equal(found.logits(TOKENS), expected.logits(TOKENS))
    assert found.tokenizer.fingerprint == expected.tokenizer.fingerprint
    assert found.generation.temperature == 0.5
    assert names(server, "lab/plain") == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "README.md"
    }  # fmt: skip
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "etching" in line] == [
        f"camelid: lab/plain: fetching 5 file(s), 0.2 MB, of commit {server.commit('lab/plain')[:12]} from the Hub"
    ]
    del server.fetched[:]
    hub._fetch.cache_clear()
    camelid.load("lab/plain")
    assert not server.fetched and "fetching" not in capsys.readouterr().err


def test_a_checkpoint_of_the_hub_is_known_by_its_commit_and_the_hashes_of_its_files(server, models):
    found, local = checkpoints.open("lab/plain"), checkpoints.open(models / "lab" / "plain")
    assert found.address == f"hf:lab/plain@{server.commit('lab/plain')}" == found.description["path"]
    assert found.identity == [found.address, *local.identity[1:]]
    assert found.description["files"] == local.description["files"]
    assert found.name == "lab/plain" and found.title == "plain"
    assert checkpoints.open(found.address).identity == found.identity


def test_of_a_model_in_several_files_the_index_says_which_are_fetched(server, models):
    found = checkpoints.open("hf:lab/parts@main")
    weights = {file for file in names(server, "lab/parts") if file.startswith("model")}
    assert weights == {path.name for path in (models / "lab" / "parts").glob("model*")} and len(weights) > 3
    arrays = zip(found.tensors(), checkpoints.open(models / "lab" / "parts").tensors(), strict=True)
    assert all(np.array_equal(one, other) for one, other in arrays)


def test_a_gguf_file_is_named_after_its_repository(server, models):
    found = checkpoints.open("lab/files/small.Q8_0.gguf")
    assert names(server, "lab/files") == {"small.Q8_0.gguf"}
    assert found.format == "gguf" and found.title == "small.Q8_0.gguf"
    assert found.identity[1:] == checkpoints.open(models / "lab/files/small.Q8_0.gguf").identity[1:]
    with pytest.raises(UserError, match=r"lab/files: .*OWNER/NAME/FILE: small.F32.gguf, small.Q8_0.gguf$"):
        checkpoints.open("lab/files")
    with pytest.raises(UserError, match=r"no file or folder small.Q8.gguf; did you mean small.Q8_0.gguf\?"):
        checkpoints.open("lab/files/small.Q8.gguf")


def test_adapters_bring_their_base_from_the_hub_at_the_revision_that_they_name(server, models, tmp_path):
    found = checkpoints.open("lab/adapters")
    assert not names(server, "lab/plain")
    local = checkpoints.open(models / "lab" / "adapters", base=models / "lab" / "plain")
    arrays = zip(found.tensors(), local.tensors(), strict=True)
    assert all(np.array_equal(one, other) for one, other in arrays)
    assert found.base.address == f"hf:lab/plain@{server.commit('lab/plain')}"
    pinned = tmp_path / "pinned"
    pinned.mkdir()
    fields = LORA | {"base_model_name_or_path": "lab/plain", "revision": "v2"}
    (pinned / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"names the base 'lab/plain@v2'.*no revision v2.*--base=PATH"):
        _ = checkpoints.open(pinned).base
    assert checkpoints.open(pinned, base="lab/plain").base.name == "lab/plain"


def test_a_run_directory_on_the_hub_is_opened_like_one_here(server, models):
    found, local = checkpoints.open("lab/run"), checkpoints.open(models / "lab" / "run")
    assert found.format == "camelid" and found.identity[1:] == local.identity[1:]
    assert all(np.array_equal(one, other) for one, other in zip(found.tensors(), local.tensors(), strict=True))


def test_a_tokenizer_is_fetched_alone(server, models):
    found = Tokenizer.load("lab/plain")
    assert found.fingerprint == Tokenizer.load(models / "tokenizer").fingerprint
    assert names(server, "lab/plain") == {"tokenizer.model"}
    assert checkpoints.open_tokenizer("lab/plain").fingerprint == found.fingerprint
    assert checkpoints.open_tokenizer("lab/files/small.F32.gguf").vocab_size == found.vocab_size
    assert Tokenizer.load("lab/plain/tokenizer.model").fingerprint == found.fingerprint
    with pytest.raises(UserError, match=r"^lab/files: lab/files on the Hub has no tokenizer\.json or tokenizer\.model"):
        Tokenizer.load("lab/files")


def test_commands_take_names(server, tmp_path, capsys):
    assert main(["convert", "lab/plain", "out"]) == 0
    assert main(["generate", "lab/plain", "--prompt=the red", "--max_tokens=4", "--temperature=0"]) == 0
    manifest = checkpoints.open("out").manifest
    assert manifest["origin"]["path"] == f"hf:lab/plain@{server.commit('lab/plain')}"
    assert main(["diff", "make", "lab/plain", "out", "difference"]) == 0
    capsys.readouterr()


def test_a_path_that_is_here_or_could_be_a_misspelt_one_is_never_asked_for(server, models, tmp_path):
    with pytest.raises(UserError, match=r"runs/plain: no such path here, and no model runs/plain on the Hub \(http"):
        checkpoints.open("runs/plain")
    (tmp_path / "here" / "lab").mkdir()
    with pytest.raises(UserError, match=r"/here/lab/plain: no such checkpoint or run directory$"):
        checkpoints.open("lab/plain")
    assert checkpoints.open("hf:lab/plain").config.n_layers == 3  # unless it is said
    assert hub.name_of("adapters/model.gguf") is None and hub.name_of("tokens/tokenizer.json") is None
    assert hub.name_of("./other/plain") is hub.name_of("/other/plain") is hub.name_of("gs://other/plain") is None
    assert hub.name_of("other/plain@refs/pr/2/a/b.gguf") == ("other/plain", "refs/pr/2", "a/b.gguf")


def test_what_the_hub_refuses_is_one_line(server, capsys):
    server.gated.add("lab/parts")
    for path, said in {
        "hf:lab/nothing": "no model lab/nothing on the Hub",
        "lab/plain@v9": "lab/plain on the Hub has no revision v9",
        "lab/parts": "its owner gives access on request",
        "lab/text": "has no model that camelid reads",
        "hf:nothing": "give hf:OWNER/NAME",
        "lab/" + "n" * 100: "it is no name on the Hub: Repo id must use alphanumeric chars",
        "https://huggingface.co/lab/plain/tree/main": "on the Hub without its address, as in lab/plain",
        "huggingface.co/lab/plain": "on the Hub without its address, as in lab/plain",
        "file:///lab/plain": "give a path, or the name of a model on the Hub without its address",
    }.items():
        assert main(["convert", path, "out"]) == 2
        err = capsys.readouterr().err
        assert said in err and path in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("way", ["refused", "broken", "offline"])
def test_without_the_hub_the_copy_in_the_cache_is_used_and_without_one_a_line_says_why(
    way, server, models, monkeypatch, capsys
):
    from huggingface_hub import constants

    Tokenizer.load("lab/parts")
    checkpoints.open("lab/plain")
    hub._fetch.cache_clear()
    if way == "refused":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    elif way == "broken":
        server.broken = 503
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    capsys.readouterr()
    begun = time.monotonic()
    assert checkpoints.open("lab/plain").config.n_layers == 3
    said = capsys.readouterr().err
    assert said == "" if way == "offline" else "in the cache is used" in said
    why = "HF_HUB_OFFLINE is set" if way == "offline" else "cannot be reached"
    with pytest.raises(UserError, match=rf"^lab/files/a.gguf: no such path here, .*{why}.*has no copy of lab/files"):
        checkpoints.open("lab/files/a.gguf")
    with pytest.raises(UserError, match=rf"{why}.*only a part of lab/parts"):
        checkpoints.open("lab/parts")
    assert time.monotonic() - begun < 5


def test_a_hub_that_never_answers_is_given_up(monkeypatch, server):
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.3)
        with pytest.raises(UserError, match="cannot be reached"):
            checkpoints.open("lab/plain")


def test_without_the_library_a_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"^lab/plain: no such path here, and .* need pip install 'camelid\[hub\]'$"):
        checkpoints.open("lab/plain")


def test_a_run_starts_from_a_name_and_its_adapters_find_their_base_at_the_same_commit(
    server, models, pretrained, arguments, tmp_path, one_device, capsys
):
    from huggingface_hub import ModelCard

    convert.to_huggingface(pretrained, models / "lab" / "language")
    line = arguments("sft", tmp_path / "run", init_from="lab/language")
    line[1] += ",lora=lora"
    assert main([*line, "--config.total_steps=2", "--config.ema_decay=None", "--config.tokenizer=lab/language"]) == 0
    commit = server.commit("lab/language")
    found = checkpoints.open(tmp_path / "run")
    assert found.manifest["adapter"]["path"] == f"hf:lab/language@{commit}"
    assert found.manifest["start"]["identity"][0] == f"hf:lab/language@{commit}"
    assert found.base.identity == found.manifest["adapter"]["identity"]
    capsys.readouterr()
    assert main([*line, "--config.total_steps=4", "--config.ema_decay=None", "--config.tokenizer=lab/language"]) == 0
    assert checkpoints.open(tmp_path / "run").step == 4
    convert.to_peft(tmp_path / "run", tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (fields["base_model_name_or_path"], fields["revision"]) == ("lab/language", commit)
    assert checkpoints.open(tmp_path / "adapter").base.identity == found.base.identity
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert (card.data.base_model, card.data["base_model_relation"]) == ("lab/language", "adapter")
    assert card.data.library_name == "peft" and f"at commit `{commit}`" in card.text
    ends = json.loads((tmp_path / "adapter" / "generation_config.json").read_text())["eos_token_id"]
    assert found.tokenizer.special["<|im_end|>"] in ends
