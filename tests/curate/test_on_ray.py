import json

import pytest

from camelid.curate.pipeline import run
from camelid.curate.settings import read_config
from camelid.tests.curate.test_pipeline import config_of, lines_of

pytest.importorskip("ray.data", reason="needs the extra ray: pip install 'camelid[ray]'")


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """Ray on two cores of this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


def test_a_run_on_ray_keeps_and_rejects_what_a_local_run_does(ray, tmp_path):
    from camelid.curate.on_ray import apply, kept, read_sources, rejected

    config = read_config(config_of(tmp_path / "in"))
    run(config, tmp_path / "out")
    rows = apply(read_sources(config), config).materialize()
    found = sorted(kept(rows).take_all(), key=lambda row: row["id"])
    for split in ("train", "heldout"):
        local = lines_of(tmp_path / "out", split)
        assert [json.loads(row["json"]) for row in found if row["split"] == split] == local
    dropped = [(row["id"], row["step"], row["reason"], row["detail"]) for row in rejected(rows).take_all()]
    local = [(row["id"], row["step"], row["reason"], row["detail"]) for row in lines_of(tmp_path / "out", "rejected")]
    assert sorted(dropped) == sorted(local)
    assert {reason for _, _, reason, _ in dropped} == {"repeated", "too_short", "same_beginning"}
