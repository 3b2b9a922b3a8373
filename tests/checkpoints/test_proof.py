"""Damaged checkpoints: nothing wrong is ever loaded, and a run goes on from the newest one that is whole."""

import json
import os
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.checkpoints import proof, reading
from camelid.checkpoints.saving import Checkpoints
from camelid.errors import UserError

DAMAGES = int(os.environ.get("CAMELID_FUZZ", 24))  # 200 by hand
MANIFEST = {"config": {"seed": 1}, "tokenizer": None, "template": None}
ASKED = {"params": {name: jax.ShapeDtypeStruct((64, 64), jnp.float32) for name in "ab"}, "step": jnp.int32(0)}


def state_at(step):
    rng = np.random.default_rng(step)
    return {
        "params": {name: jnp.asarray(rng.normal(size=(64, 64)), jnp.float32) for name in "ab"},
        "step": jnp.int32(step),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory with the checkpoints 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir, every_steps=1, keep_last=3) as store:
        for step in (1, 2, 3):
            store.save(step, state_at(step), MANIFEST)
    return workdir


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(rng, folder):
    path = rng.choice([path for path in files_of(folder) if path.stat().st_size])
    os.truncate(path, rng.randrange(path.stat().st_size))
    return path


def flip(rng, folder):
    path = rng.choice([path for path in files_of(folder) if path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return path


def delete(rng, folder):
    path = rng.choice(files_of(folder))
    path.unlink()
    return path


def delete_a_folder(rng, folder):
    path = rng.choice([path for path in folder.rglob("*") if path.is_dir()])
    shutil.rmtree(path)
    return path


def exchange(rng, folder):
    """Two files of one checkpoint change places."""
    a, b = rng.sample([path for path in files_of(folder) if path.stat().st_size], 2)
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    return a


def take_from_another(rng, folder):
    """A file of the checkpoint before takes the place of the largest one, or of the manifest."""
    other = folder.parent / str(int(folder.name) - 1)
    largest = max(files_of(folder), key=lambda path: path.stat().st_size)
    source = max(files_of(other), key=lambda path: path.stat().st_size)
    if rng.random() < 0.5:
        largest, source = folder / proof.ORBAX_FILE, other / proof.ORBAX_FILE
    largest.write_bytes(source.read_bytes())
    return largest


DAMAGE = (truncate, flip, delete, delete_a_folder, exchange, take_from_another)


def same(found, expected) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True))


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_of_a_damaged_checkpoint_nothing_is_loaded_and_a_run_goes_on_from_the_one_before(saved, tmp_path, seed, capsys):
    rng = random.Random(seed)
    shutil.copytree(saved, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "3"
    spoiled = DAMAGE[seed % len(DAMAGE)](rng, newest)
    harmless = proof.damage_of(newest) is None  # a byte of white space in the list of checksums, say
    with Checkpoints(tmp_path / "run", every_steps=1, keep_last=2) as store:
        step = store.latest()
        found = store.restore(ASKED, step)
    assert step == (3 if harmless else 2), spoiled
    assert same(found, state_at(step)), spoiled
    if harmless:
        assert spoiled.name == proof.PROOF
        return
    assert f"{newest} is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"is damaged: |no such checkpoint|neither a complete checkpoint") as error:
        reading.load_part(reading.find(newest), ASKED["params"], ["params"])
    assert "\n" not in str(error.value)
    assert reading.read_manifest(tmp_path / "run")["step"] == 2
    params = reading.load_part(reading.find(tmp_path / "run"), ASKED["params"], ["params"])
    assert same(params, state_at(2)["params"])


def test_a_resumed_run_makes_the_damaged_step_anew_and_deletes_no_whole_checkpoint_for_it(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    flip(random.Random(0), folder / "3" / "state")
    with Checkpoints(tmp_path / "run", every_steps=1, keep_last=1) as store:
        store.restore(ASKED)
        assert store.save(2, state_at(2), MANIFEST, force=True) is False  # it stands
        store.wait()
        assert sorted(os.listdir(folder)) == ["1", "2", "3"]
        assert store.save(3, state_at(30), MANIFEST)
        store.wait()
        assert sorted(os.listdir(folder)) == ["3", "3.aside1"]
        assert same(store.restore(ASKED), state_at(30))


def test_checkpoints_stay_until_a_new_one_is_proven(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"

    def fail(path):
        raise OSError("read back after writing, a file has other bytes")

    monkeypatch.setattr(proof, "prove", fail)
    store = Checkpoints(tmp_path / "run", every_steps=1, keep_last=1)
    store.save(4, state_at(4), MANIFEST)
    with pytest.raises(OSError, match=r"step 4 was not written .* read back after writing"):
        store.close()
    assert {"1", "2", "3"} <= set(os.listdir(folder))
    assert reading.find(tmp_path / "run").name == "3"
    monkeypatch.undo()
    with Checkpoints(tmp_path / "run", every_steps=1, keep_last=1) as store:
        store.save(5, state_at(5), MANIFEST)
    assert os.listdir(folder) == ["5"]  # what was cut off goes too


def test_a_checkpoint_that_its_run_deletes_for_a_newer_one_while_it_is_read_is_not_taken_for_a_damaged_one(
    saved, tmp_path, monkeypatch, capsys
):
    """Readers of a run that goes on: its list of checkpoints is old as soon as it is read."""
    shutil.copytree(saved, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for step in "12":
        shutil.rmtree(folder / step)
    look, moved = proof.damage_of, []

    def replaced(path):
        if not moved:
            shutil.copytree(folder / "3", folder / "4")
            moved.append(proof.delete(path))
        return look(path)

    monkeypatch.setattr(proof, "damage_of", replaced)
    assert reading.find(tmp_path / "run").name == "4"
    assert capsys.readouterr().err == ""
    newest = reading.epath.Path(folder / "4")
    said = "4 was deleted while it was read, as a running training does"
    with pytest.raises(UserError, match=said), reading.read_errors(newest):
        proof.delete(newest)
        (newest / proof.ORBAX_FILE).read_text()


@pytest.fixture
def compared(monkeypatch):
    """The names of the folders whose files were compared with their checksums, in order."""
    names, damage = [], proof.checksums.damage
    monkeypatch.setattr(
        proof.checksums, "damage", lambda folder, expected: names.append(folder.name) or damage(folder, expected)
    )
    return names


def test_a_resuming_run_reads_every_file_of_a_checkpoint_once(saved, tmp_path, compared):
    shutil.copytree(saved, tmp_path / "run")
    with Checkpoints(tmp_path / "run", every_steps=1, keep_last=3) as store:
        step = store.latest()
        assert store.holds(step, "params")
        assert same(store.restore(ASKED, step), state_at(3))
        assert compared == ["3"]
        store.restore(ASKED, 2)  # another one is compared, and so is what a save has written
        store.save(4, state_at(4), MANIFEST)
        store.wait()
        assert compared == ["3", "2", "4"]
        assert same(store.restore(ASKED), state_at(4))
    assert compared == ["3", "2", "4", "4"]


def test_damage_is_found_though_size_and_time_of_the_file_stay(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints" / "3"
    path = max(files_of(folder), key=lambda path: path.stat().st_size)
    status = path.stat()
    assert proof.damage_of(reading.epath.Path(folder)) is None
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "has other bytes than were written" in proof.damage_of(reading.epath.Path(folder))


def test_folders_that_hold_no_checkpoint_are_passed_over_and_stay(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for name in ("notes", "12.bak", "7", "08", "٩"):
        (folder / name).mkdir()
    (folder / "7" / "mine.txt").write_text("mine")
    (folder / "99").write_text("a file")
    assert reading.find(tmp_path / "run").name == "3"
    with Checkpoints(tmp_path / "run", every_steps=1, keep_last=1) as store:
        assert store.latest() == 3
        store.restore(ASKED)
        store.save(7, state_at(7), MANIFEST)
    assert sorted(os.listdir(folder)) == ["08", "12.bak", "7", "7.aside1", "99", "notes", "٩"]
    assert (folder / "7.aside1" / "mine.txt").read_text() == "mine"


def test_where_every_checkpoint_is_damaged_a_run_does_not_start_over_by_itself(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    for step in "123":
        flip(random.Random(1), tmp_path / "run" / "checkpoints" / step / "state")
    with Checkpoints(tmp_path / "run") as store, pytest.raises(UserError, match="every checkpoint in it is damaged"):
        store.latest()


def test_a_checkpoint_of_a_version_without_checksums_opens_and_its_damage_is_a_line(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for step in "12":
        shutil.rmtree(folder / step)
    (folder / "3" / proof.PROOF).unlink()
    metadata = json.loads((folder / "3" / proof.ORBAX_FILE).read_text())
    del metadata["custom_metadata"]["checksums"]
    (folder / "3" / proof.ORBAX_FILE).write_text(json.dumps(metadata))
    assert proof.digest(reading.find(tmp_path / "run")) is None
    assert same(reading.load_part(reading.find(tmp_path / "run"), ASKED["params"], ["params"]), state_at(3)["params"])
    for path in files_of(folder / "3" / "state"):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="checkpoints/3 cannot be read: ") as error:
        reading.load_part(reading.find(tmp_path / "run"), ASKED["params"], ["params"])
    assert "\n" not in str(error.value)


def test_two_checkpoints_of_the_same_numbers_are_told_apart_and_a_copy_is_not(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    with Checkpoints(tmp_path / "again", every_steps=1) as store:
        store.save(3, state_at(3), MANIFEST)
    digests = [proof.digest(reading.find(path)) for path in (saved, tmp_path / "copy", tmp_path / "again")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("mode", "kept"), [("min", "2"), ("max", "3")])
def test_the_best_checkpoint_by_a_metric_is_saved_when_it_comes_kept_and_found(tmp_path, mode, kept):
    manifest = MANIFEST | {"config": {"checkpoint": {"best": ["eval/loss", mode]}}}
    found = {1: 3.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: float("nan"), 6: 2.0}
    for steps in ((1, 2, 3), (4, 5, 6)):  # a run and what it is resumed to
        with Checkpoints(tmp_path, every_steps=6, best=reading.Best("eval/loss", mode)) as store:
            for step in steps:
                store.save(step, state_at(step), manifest, metrics={"eval/loss": found[step]})
            store.wait()
            assert store.best() == int(kept)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == sorted({kept, "6"})
    assert reading.find(f"{tmp_path}@best").name == kept
    assert reading.read_manifest(f"{tmp_path}@best")["metrics"] == {"eval/loss": found[int(kept)]}


def test_the_best_checkpoint_is_read_once_where_it_is_the_newest_too(tmp_path, compared):
    manifest = MANIFEST | {"config": {"checkpoint": {"best": ["eval/loss", "max"]}}}
    with Checkpoints(tmp_path, every_steps=1) as store:
        store.save(1, state_at(1), manifest, metrics={"eval/loss": 1.0})
    compared.clear()
    assert reading.find(f"{tmp_path}@best").name == "1"
    assert compared == ["1"]


def test_a_run_that_kept_no_best_says_so(saved):
    with pytest.raises(UserError, match=r"had no config\.checkpoint\.best"):
        reading.find(f"{saved}@best")
