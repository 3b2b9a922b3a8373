"""Longer contexts: what happens past the trained one, with and without a stretch of positions, and after tuning."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import camelid
from camelid.checkpoints.convert import to_peft
from camelid.checkpoints.heldout_loss import heldout_loss
from camelid.data.packed_rows import DTYPES
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.launch.recipes import read_config
from camelid.model import llama
from camelid.model.config import LlamaConfig, RopeScaling
from camelid.model.logprobs import next_token_loss
from camelid.model.sharding import make_mesh
from camelid.settings.config_files import load_config
from camelid.settings.length import Length
from camelid.train.by_layer import at_once
from camelid.train.run import Run
from camelid.train.state import state_of
from camelid.train.trainable import Trainable
from camelid.train.update import make_update

CONFIG = Path(camelid.__file__).parent / "configs" / "pretrain" / "longer.py"
TRAINED, LONG = 64, 256
NANO = LlamaConfig.from_dict(
    dict(vocab_size=32, dim=32, n_layers=1, n_heads=2, ffn_dim=64, max_len=TRAINED, tied=True)
)  # its slowest pair of eight turns by 64 / 3162 radians within the trained context
SHORT, FAR = "perplexity/0-64", "perplexity/128-256"


class Register:
    """Batches of rows in which a register of eight values is set now and then, and asked for in between.

    Pairs of tokens: noise and a value (0 to 7), a question (16) and the latest value's answer (8 to 15), or noise
    twice. Trained on are the answers: a model has to look back past the noise, to the latest value and to none before.
    """

    def __init__(self, length: int, batch_size: int, n: int, seed: int):
        self.length, self.batch_size, self.n, self.seed = length, batch_size, n, seed
        self.shapes = {name: ((batch_size, length), dtype) for name, dtype in DTYPES.items()}

    def __len__(self) -> int:
        return self.n

    def rows(self, step: int, rows: slice) -> dict[str, np.ndarray]:
        rng, size = np.random.default_rng((self.seed, step)), (self.batch_size, self.length // 2 + 1)
        kind = rng.choice(3, size, p=[0.15, 0.35, 0.5])
        kind[:, 0] = 0
        was_set = np.maximum.accumulate(np.where(kind == 0, np.arange(size[1]), 0), axis=1)
        value = np.take_along_axis(rng.integers(0, 8, size), was_set, axis=1)
        noise = rng.integers(17, 32, (2, *size))
        first, second = np.where(kind == 1, 16, noise[0]), np.choose(kind, [value, 8 + value, noise[1]])
        pairs = np.stack([first, second], axis=-1)
        asked = np.stack([np.zeros(size), kind == 1], axis=-1)
        tokens, asked = (x.reshape(self.batch_size, -1)[:, : self.length + 1] for x in (pairs, asked))
        ones = np.ones((self.batch_size, self.length), np.int32)
        batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], loss_mask=asked[:, 1:], segment_ids=ones)
        batch["positions"] = ones.cumsum(axis=1) - 1
        return {name: batch[name][rows].astype(dtype) for name, dtype in DTYPES.items()}


def train(config: LlamaConfig, params, steps: int, batch_size: int, lr: float, seed: int):
    schedule = optax.linear_schedule(lr / 10, lr, 10)
    optimizer = at_once(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.95)))
    update = make_update(next_token_loss(llama.build(config)), optimizer, schedule)
    batches = Register(config.max_len, batch_size, steps, seed)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(batches.rows(step, slice(None)) for step in range(steps)))
    run = jax.jit(lambda state, batches: jax.lax.scan(lambda s, b: (update(s, b)[0], None), state, batches)[0])
    return run(state_of(params, optimizer, Trainable(), ema=False), stacked)["params"]


@pytest.fixture(scope="module")
def trained():
    """Parameters that answer in rows of 64 tokens."""
    first = llama.build(NANO).init(jax.random.key(0))
    return train(NANO, first, steps=200, batch_size=16, lr=1e-2, seed=0)


@pytest.fixture(scope="module")
def measure():
    """measure(config, params): perplexity of the answers by range of positions, in rows of 256 tokens."""
    heldout, kept = {"": Register(LONG, 32, 1, seed=1)}, {}
    tokens = SimpleNamespace(characters=np.ones(NANO.vocab_size), adds_bos=False)
    rows = NamedSharding(make_mesh({}, jax.devices()[:1]), PartitionSpec())

    def run(config, params):
        if config not in kept:
            kept[config] = heldout_loss(llama.build(config), heldout, tokens, rows, 1, borders=(TRAINED, 2 * TRAINED))
        return {name.lstrip("/"): value for name, value in kept[config](params)[0].items()}

    return run


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_an_untouched_model_fails_past_its_context_a_stretched_one_far_less_and_a_tuned_one_not(kind, trained, measure):
    untouched = measure(NANO, trained)
    assert untouched[SHORT] < 1.3 and untouched[FAR] > 10 * untouched[SHORT]
    config = NANO.stretched(kind, max_len=LONG)
    stretched = measure(config, trained)
    assert stretched[FAR] < untouched[FAR] / 5
    tuned = measure(config, train(config, trained, steps=24, batch_size=8, lr=2e-3, seed=2))
    for reach in (SHORT, FAR):
        assert tuned[reach] < 1.15 * untouched[SHORT] and tuned[reach] <= stretched[reach]


@pytest.fixture(scope="module")
def longer(pretrained, tmp_path_factory):
    """The run directory of `pretrained` at twice its context of 256 tokens, with adapters, and its documents."""
    root = tmp_path_factory.mktemp("longer")
    book = " ".join(f"the red fox sees {n} blue whales." for n in range(150))
    (root / "books.jsonl").write_text("\n".join(json.dumps({"text": f"{book} {n}"}) for n in range(10)))
    line = f"--config={CONFIG}:init_from={pretrained},source={root}/books.jsonl,kind=linear,lora=4"
    line += ",length=512,batch_size=8"
    short = ["total_steps=2", "schedule.warmup_steps=1", "data.heldout=0.3", f"data.cache_dir={root}/cache"]
    assert main(["train", line, f"--workdir={root}/run", *(f"--config.{leaf}" for leaf in short)]) == 0
    return root


def test_the_config_stretches_what_the_checkpoint_says_and_reports_both_ranges(longer, pretrained, metrics):
    before, after = (camelid.load(path).config for path in (pretrained, longer / "run"))
    assert after == before.stretched("linear", max_len=512).replace(remat="attention")
    assert (after.rope_scaling.factor, after.rope_scaling.original_max_len) == (2.0, 256)
    reported = metrics(longer / "run")[2]
    assert {name.rpartition("/")[2] for name in reported if "perplexity/" in name} == {"0-256", "256-512"}


def test_adapters_norms_and_embedding_learn(longer, pretrained):
    before, after = (camelid.load(path).params for path in (pretrained, longer / "run"))
    same = jax.tree.map(lambda x, y: bool((x == y).all()), before, after)
    assert not any(jax.tree.leaves((same["embed"], same["norm"], same["layers"]["attention"])))
    assert all(jax.tree.leaves(same["layers"]["mlp"]))


def test_adapters_to_stretched_positions_do_not_go_where_these_are_not_said(longer, tmp_path):
    with pytest.raises(UserError, match="PEFT cannot express its rotary scaling"):
        to_peft(longer / "run", tmp_path / "peft", base_name="some/hub-id")


@pytest.mark.parametrize(("kind", "steps"), [("linear", 1000), ("ntk", 1000), ("yarn", 400)])
def test_one_argument_chooses_the_kind(kind, steps, pretrained):
    settings = read_config(load_config(f"{CONFIG}:init_from={pretrained},kind={kind}"))
    config = Run(settings, "unused", mesh=None).model.config
    assert config.rope_scaling == RopeScaling(kind, 32.0, original_max_len=256)
    assert (config.max_len, settings.data.seq_len, settings.total) == (8192, 8192, Length(steps, "steps"))


def test_a_stretched_network_is_stretched_anew_from_what_it_was_trained_on(longer):
    rope = {"kind": "yarn", "factor": 16.0, "beta_fast": 8.0}
    settings = read_config(load_config(f"{CONFIG}:init_from={longer}/run", [f"--config.model.rope_scaling={rope}"]))
    config = Run(settings, "unused", mesh=None).model.config
    assert config.rope_scaling == RopeScaling("yarn", 16.0, original_max_len=256, beta_fast=8.0)
    assert camelid.load(longer / "run", rope=("ntk", 2048)).config.rope_scaling == RopeScaling("ntk", 8.0, 256)


@pytest.mark.parametrize(
    ("config", "arguments", "says"),
    [
        (NANO, dict(kind="yarn"), "give max_len, more than the trained context of 64 tokens"),
        (NANO, dict(kind="yarn", max_len=32), "factor 0.5"),
        (NANO, dict(kind="cubic", max_len=128), "'cubic': give one of linear"),
        (NANO.replace(rope_scaling=RopeScaling("linear", 2.0)), dict(kind="ntk", max_len=256), "give original_max_len"),
    ],
)
def test_a_stretch_that_makes_no_sense_is_refused(config, arguments, says):
    with pytest.raises(ValueError, match=says):
        config.stretched(**arguments)
