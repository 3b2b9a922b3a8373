"""A small model behind a server that listens, which the tests of the protocol share."""

import socket
import threading

import jax
import openai
import pytest
import uvicorn

from camelid.checkpoints.language_model import LanguageModel
from camelid.data.templates import load_template
from camelid.data.tokenizer import Tokenizer
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import make_mesh
from camelid.serve.api import Server, make_app
from camelid.serve.completions import Served
from camelid.serve.engine import Engine
from camelid.tests.serve.test_adapters import KINDS, adapted


@pytest.fixture(scope="session")
def models(corpus):
    """A model that is served, and the same model with adapters."""
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    config = LlamaConfig.preset("nano-test", vocab_size=tokenizer.vocab_size, max_len=128)
    model = llama.build(config)
    params = jax.tree.map(lambda x: 2 * x, jax.jit(model.init)(jax.random.key(0)))
    mesh = make_mesh({}, jax.devices()[:1])
    found = LanguageModel(model, params, tokenizer, load_template("chatml"), mesh)
    poet = adapted(found, KINDS["some"], seed=0)
    poet.tokenizer, poet.template = tokenizer, load_template("llama2")
    return Served("nano", found, Engine(found, rows=4, chunk=16, most_waiting=16, adapters={"poet": poet}), {}), poet


@pytest.fixture(scope="session")
def served(models):
    return models[0]


@pytest.fixture(scope="session")
def server(models):
    base, poet = models
    both = {"nano": base, "poet": Served("poet", poet, base.engine, {}, parent="nano")}
    return Server(both, api_key="secret", most_bytes=20_000)


@pytest.fixture(scope="session")
def url(server):
    """The address of a server that listens."""
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(make_app(server), log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as found:
        yield found
