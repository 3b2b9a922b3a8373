"""Checkpoints: bit-equal on any mesh, complete or invisible, and errors that say which leaves differ."""

import io
import os
import re
import resource
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import sentencepiece
from jax.sharding import NamedSharding, PartitionSpec

from camelid import checkpoints
from camelid.checkpoints import reading, saving
from camelid.checkpoints.manifest import describe
from camelid.checkpoints.saving import Checkpoints
from camelid.data.tokenizer import Tokenizer
from camelid.errors import UserError
from camelid.train import resume
from camelid.train.run_config import SupervisedConfig

MANIFEST = {"config": {"seed": 1}, "tokenizer": None, "template": None, "data_fingerprint": "abc"}


def mesh(*shape):
    return jax.make_mesh(
        shape, ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[: np.prod(shape)]
    )


def make_state(seed=0):
    """A state with what training has: float32, bfloat16 and int8 leaves, scalars, NamedTuples, empty states, EMA."""
    rng = np.random.default_rng(seed)
    params = {
        "embed": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        "layers": {
            "w": jnp.asarray(rng.normal(size=(2, 8, 16)), jnp.bfloat16),
            "q": jnp.asarray(rng.integers(-128, 127, (2, 8)), jnp.int8),
        },
    }
    floats = {"embed": True, "layers": {"w": True, "q": False}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(optax.constant_schedule(1e-3)), floats)
    )
    opt_state = jax.tree.map(lambda x: x + seed if x.dtype == jnp.int32 else x + 0.1, optimizer.init(params))
    return {"params": params, "opt_state": opt_state, "step": jnp.int32(seed), "ema": params["embed"] * 0.5}


def abstract(tree, sharding_of=lambda x: x.sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x)), tree)


def sharded(sizes):
    """Shards the last axis over tensor and the one before over fsdp."""
    on = mesh(*sizes)

    def sharding(x):
        spec = {0: (), 1: ("tensor",)}.get(x.ndim, (None,) * (x.ndim - 2) + ("fsdp", "tensor"))
        return NamedSharding(on, PartitionSpec(*spec))

    return sharding


def assert_bit_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def steps_on_disk(workdir):
    return sorted(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit())


@pytest.mark.parametrize("asked", [(1, 8), (2, 4), (1, 1)])
def test_a_state_saved_on_one_mesh_loads_bit_equal_on_another(tmp_path, asked):
    plain = make_state()
    saved = jax.device_put(plain, jax.tree.map(sharded((1, 8)), plain))
    with Checkpoints(tmp_path, every_steps=1) as store:
        assert store.save(1, saved, MANIFEST)
        target = abstract(plain, sharded(asked))
        found = store.restore(target)
    assert_bit_equal(found, plain)
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == wanted.sharding


def test_leaves_without_a_sharding_load_on_one_device_wherever_they_were_saved(tmp_path):
    plain = make_state()
    with Checkpoints(tmp_path, every_steps=1) as store:
        store.save(1, jax.device_put(plain, jax.tree.map(sharded((2, 4)), plain)), MANIFEST)
        found = store.restore(abstract(plain, lambda _: None))
    assert_bit_equal(found, plain)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(found)} == {1}


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = update({"params": {"w": jnp.zeros((1024, 1024))}, "step": jnp.int32(0)})
    with Checkpoints(tmp_path, every_steps=1, keep_last=4) as store:
        for step in range(1, 5):
            store.save(step, state, MANIFEST)
            state = update(update(state))  # steps of 2
        for step in range(1, 5):
            found = store.restore(abstract(state), step)
            assert int(found["step"]) == 2 * step - 1 and np.all(np.asarray(found["params"]["w"]) == 2 * step - 1)


def test_parameters_load_alone_cast_and_resharded(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, every_steps=1) as store:
        store.save(1, state, MANIFEST)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype, sharding=sharded((2, 4))(x)
        ),
        state["params"],
    )
    found = reading.load_part(reading.find(tmp_path), params, ["params"])
    assert_bit_equal(found, state["params"] | {"embed": state["params"]["embed"].astype(jnp.bfloat16)})
    assert found["layers"]["w"].sharding == params["layers"]["w"].sharding
    ema = reading.load_part(reading.find(tmp_path / "checkpoints" / "1"), abstract(state["ema"]), ["ema"])
    assert_bit_equal(ema, state["ema"])
    with pytest.raises(UserError, match="its state has no 'critic', only ema, opt_state, params, step"):
        reading.load_part(reading.find(tmp_path), params, ["critic"])


def test_what_does_not_fit_is_listed_before_anything_is_loaded(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, every_steps=1) as store:
        store.save(1, state, MANIFEST)
        asked = abstract(state)
        asked["params"]["layers"]["w"] = jax.ShapeDtypeStruct((2, 8, 32), jnp.bfloat16)
        asked["params"]["layers"]["q"] = jax.ShapeDtypeStruct((2, 8), jnp.float32)
        asked["params"]["head"] = {f"h{i:02}": jax.ShapeDtypeStruct((i,), jnp.float32) for i in range(12)}
        del asked["ema"]
        with pytest.raises(UserError) as error:
            store.restore(asked)
    message = str(error.value)
    assert "12 missing from the checkpoint: params/head/h00 float32[0]; params/head/h01 float32[1]; " in message
    assert "params/head/h09 float32[9]; ... | " in message and "h10" not in message
    assert "1 only in the checkpoint: ema float32[16,8] | " in message
    assert "2 different: params/layers/q int8[2,8], asked for float32[2,8]; " in message
    assert message.endswith("params/layers/w bfloat16[2,8,16], asked for bfloat16[2,8,32]") and "\n" not in message


def test_another_optimizer_does_not_fit(tmp_path):
    params = {"w": jnp.ones((4,))}
    with Checkpoints(tmp_path, every_steps=1) as store:
        store.save(1, {"params": params, "opt_state": optax.adam(1e-3).init(params)}, MANIFEST)
        asked = abstract({"params": params, "opt_state": optax.sgd(1e-3, momentum=0.9).init(params)})
        with pytest.raises(UserError, match="1 missing from the checkpoint: opt_state/0/trace/w float32"):
            store.restore(asked)


def test_every_step_is_saved_when_due_and_the_last_and_the_permanent_ones_are_kept(tmp_path):
    state = {"params": {"w": jnp.ones((2,))}}
    with Checkpoints(tmp_path, every_steps=2, keep_last=2, keep_every=5) as store:
        saved = [step for step in range(1, 14) if store.save(step, state, MANIFEST)]
        assert store.save(13, state, MANIFEST, force=True) and not store.save(13, state, MANIFEST, force=True)
        assert store.seconds_blocked > 0
    assert saved == [2, 4, 5, 6, 8, 10, 12]
    assert steps_on_disk(tmp_path) == [5, 10, 12, 13]
    assert reading.find(tmp_path).name == "13"


def test_temporary_checkpoints_are_saved_by_the_clock_and_deleted_once_a_newer_one_is_complete(tmp_path, monkeypatch):
    state, now = {"params": {"w": jnp.ones((2,))}}, [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    on_disk = []
    with Checkpoints(tmp_path, every_steps=10, keep_last=2, temporary_seconds=60) as store:
        for step in range(1, 36):
            now[0] += 15  # 5 steps until 60 seconds have passed since the first; then 4 from save to save
            due = store.due(step)
            assert store.save(step, state, MANIFEST) == due
            store.wait()
            on_disk.append((step, steps_on_disk(tmp_path))) if due else None
    assert on_disk == [
        *[(5, [5]), (9, [9]), (10, [10]), (14, [10, 14]), (18, [10, 18]), (20, [10, 20]), (24, [10, 20, 24])],
        *[(28, [10, 20, 28]), (30, [20, 30]), (34, [20, 30, 34])],
    ]
    with Checkpoints(tmp_path, every_steps=10, keep_last=2) as store:  # another process finds out which are temporary
        store.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state), 34)
        assert store.save(40, state, MANIFEST)
    assert steps_on_disk(tmp_path) == [30, 40]


def test_what_a_signal_saves_is_temporary_unless_it_is_the_best_or_due(tmp_path):
    state = {"params": {"w": jnp.ones((2,))}}
    with Checkpoints(tmp_path, every_steps=10, keep_last=1, best=reading.Best("eval/loss", "min")) as store:
        for step, loss in ((10, None), (13, None), (15, 1.0), (20, None), (23, None), (30, None)):
            metrics = {} if loss is None else {"eval/loss": loss}
            assert store.save(step, state, MANIFEST, force=step % 10 > 0, temporary=step % 10 > 0, metrics=metrics)
            store.wait()
        assert steps_on_disk(tmp_path) == [15, 30] and store.best() == 15
        written = (tmp_path / "checkpoints" / "30" / "checksums.json").stat().st_mtime_ns
        assert not store.save(30, state, MANIFEST, again=True, metrics={"eval/loss": 2.0})  # nothing to keep it for
        assert (tmp_path / "checkpoints" / "30" / "checksums.json").stat().st_mtime_ns == written
        assert store.save(30, state, MANIFEST, again=True, metrics={"eval/loss": 0.5})
    assert steps_on_disk(tmp_path) == [30] and reading.manifest_of(tmp_path / "checkpoints" / "30")["metrics"]


def test_several_processes_seldom_ask_for_the_time_of_the_first(tmp_path, monkeypatch):
    asked, now = [], [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(saving.jax, "process_count", lambda: 2)
    monkeypatch.setattr(saving.multihost_utils, "broadcast_one_to_all", lambda x: (asked.append(step), x)[1])
    store = Checkpoints(tmp_path, every_steps=10**6, temporary_seconds=600)
    due = []
    for step in range(1, 5000):
        now[0] += 0.5 if step < 500 else 0.25  # steps become faster
        if store.due(step):
            due.append(now[0])
            store._saved_at = now[0]
    store.close()
    assert np.diff([0.5, *due]) == pytest.approx([600.0] * len(due), abs=1.0) and len(due) == 2
    assert len(asked) < 60


def test_a_checkpoint_is_found_by_its_own_path_and_by_its_run(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "run", every_steps=1, keep_last=2) as store:
        assert store.latest() is None
        with pytest.raises(UserError, match="no complete checkpoint to restore"):
            store.restore({})
        for step in (9, 10):
            store.save(step, {"params": {"w": jnp.ones(2)}}, MANIFEST)
    monkeypatch.chdir(tmp_path)
    assert reading.find("run") == tmp_path / "run" / "checkpoints" / "10"
    assert reading.find("run/checkpoints/9") == tmp_path / "run" / "checkpoints" / "9"
    assert reading.read_manifest("run/checkpoints/9") == {"step": 9, "checksums": "crc32", **MANIFEST}
    with pytest.raises(UserError, match="nowhere: no such checkpoint or run directory"):
        reading.find("nowhere")
    with pytest.raises(UserError, match="neither a complete checkpoint nor a run directory that holds one"):
        reading.find(tmp_path)


def test_the_path_alone_gives_config_template_and_tokenizer(tmp_path):
    tokenizer = train_tokenizer(tmp_path / "made", 270)
    config = ml_collections.ConfigDict({"optim": {"betas": (0.9, 0.95), "warmup": None}})
    template = types.SimpleNamespace(name="chatml", source="{{ messages }}")
    manifest = describe(config, tokenizer=tokenizer, template=template, data_fingerprint="abc")
    run = tmp_path / "run"
    saving.keep_tokenizer(run, tokenizer)
    with Checkpoints(run, every_steps=1) as store:
        store.save(3, {"params": {"w": jnp.ones(2)}}, manifest)

    found = reading.read_manifest(run)
    assert found["config"] == {"optim": {"betas": [0.9, 0.95], "warmup": None}} and found["step"] == 3
    assert found["template"] == {"name": "chatml", "source": "{{ messages }}"} and found["data_fingerprint"] == "abc"
    assert found["versions"]["jax"] == jax.__version__ and found["versions"].keys() == {"camelid", "jax", "flax"}
    loaded = checkpoints.open(run / "checkpoints" / "3").tokenizer
    assert loaded.encode("a b") == tokenizer.encode("a b") and loaded.fingerprint == tokenizer.fingerprint

    saving.keep_tokenizer(run, train_tokenizer(tmp_path / "other", 280))
    with pytest.raises(UserError, match=r"is not the tokenizer that .*/checkpoints/3 was trained with"):
        _ = checkpoints.open(run).tokenizer


def test_a_run_whose_manifest_says_no_more_than_the_model_files_hash_opens_as_it_was_trained(tmp_path):
    files = train_tokenizer(tmp_path / "made", 270)._files
    config = b'{"add_bos_token": false, "chat_template": "x"}'  # of a folder's, all but the template was unread
    tokenizer = Tokenizer(files | {"tokenizer_config.json": config}, "their")
    assert not tokenizer.adds_bos
    config = ml_collections.ConfigDict()
    manifest = describe(config, tokenizer=tokenizer)
    older = manifest | {"tokenizer": {"fingerprint": tokenizer.model_fingerprint}}
    saving.keep_tokenizer(tmp_path, tokenizer)
    with Checkpoints(tmp_path, every_steps=1) as store:
        store.save(1, {"params": {"w": jnp.ones(2)}}, older)
    loaded = checkpoints.open(tmp_path).tokenizer
    assert loaded.adds_bos and loaded.chat_template == "x"
    length = {"total_steps": 1}
    # data_fingerprint would say which tokens changed
    assert resume.compare(older | length, manifest | length, SupervisedConfig) == ([], [])
    other = describe(config, tokenizer=train_tokenizer(tmp_path / "other", 280))
    [refused], _ = resume.compare(older | length, other | length, SupervisedConfig)
    assert "another tokenizer" in refused


def test_a_run_without_a_tokenizer_loads_none(tmp_path):
    with Checkpoints(tmp_path, every_steps=1) as store:
        store.save(1, {"params": {"w": jnp.ones(2)}}, MANIFEST)
    assert checkpoints.open(tmp_path).tokenizer is None


def train_tokenizer(directory, vocab_size):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 10), model_writer=model, vocab_size=vocab_size, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return Tokenizer.load(directory)


@pytest.mark.parametrize("notice", ["wait", "save"])
def test_a_save_that_fails_is_loud_and_the_last_good_checkpoint_survives(tmp_path, notice):
    state = {"params": {"w": jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)))}}
    with Checkpoints(tmp_path, every_steps=1, keep_last=1) as store:
        store.save(1, state, MANIFEST)
        store.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writing more fails, as on a full disk
        try:
            with pytest.raises(
                OSError, match=r"the checkpoint of step 2 was not written .* \(the last complete one is of step 1"
            ):
                store.save(2, state, MANIFEST)
                store.wait() if notice == "wait" else store.save(3, state, MANIFEST)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.listdir(tmp_path / "checkpoints") == ["1"]
        assert store.latest() == 1
        assert_bit_equal(store.restore(abstract(state)), state)
        assert store.save(3, state, MANIFEST)  # the disk has room again
    assert reading.find(tmp_path).name == "3"


KILLED = """
import os, signal, sys
import jax, jax.numpy as jnp
from camelid.checkpoints.saving import Checkpoints

workdir, moment = sys.argv[1:]
rename = os.rename

def killed_at_commit(source, target, **where):
    if str(target).endswith("/checkpoints/2"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target, **where)

if moment == "commit":
    os.rename = os.replace = killed_at_commit
store = Checkpoints(workdir, every_steps=1, keep_last=1)
for step in (1, 2):
    store.save(step, {"params": {"w": jnp.full((1024, 1024), step, jnp.float32)}}, {"config": {}})
    if step == 1:
        store.wait()
if moment == "commit":
    store.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["writing", "commit"])
def test_a_run_killed_while_it_saves_resumes_from_the_last_complete_checkpoint(tmp_path, moment):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = sorted(os.listdir(tmp_path / "checkpoints"))
    if moment == "commit":
        assert len(left) == 2 and re.fullmatch(r"2\..*tmp.*", left[1])
    last = 2 if "2" in left else 1  # when killed at once, the save may already have come through
    assert reading.find(tmp_path).name == str(last)
    asked = {"params": {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}}
    with Checkpoints(tmp_path, every_steps=1, keep_last=5) as store:
        assert store.latest() == last
        state = store.restore(asked)
        assert np.all(np.asarray(state["params"]["w"]) == last)
        assert store.save(7, state, MANIFEST)
    assert [name for name in os.listdir(tmp_path / "checkpoints") if "tmp" in name] == []
    assert steps_on_disk(tmp_path)[-1] == 7
