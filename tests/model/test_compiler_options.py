"""Options of XLA for the programs of a step: those of the platform, and a run's own."""

from types import SimpleNamespace

import jax
import pytest

from camelid.errors import UserError
from camelid.model import compiler_options as options
from camelid.model.sharding import make_mesh, platform_of

FAST = "xla_cpu_enable_fast_math"


def test_a_runs_own_options_are_added_or_replace_those_of_the_platform(monkeypatch):
    mesh = make_mesh()
    assert options.compiler_options(mesh, {}) == {}
    assert options.compiler_options(mesh, {FAST: "true"}) == {FAST: True}
    monkeypatch.setitem(options.DEFAULTS, "cpu", {FAST: False, "xla_cpu_prefer_vector_width": 256})
    own = {FAST: "default", "xla_cpu_prefer_vector_width": "512"}
    assert options.compiler_options(mesh, own) == {"xla_cpu_prefer_vector_width": "512"}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"xla_nonsense": 1}, "No such compile option: 'xla_nonsense'; --config.compiler_options.NAME=default leaves"),
        ({FAST: "perhaps"}, "'perhaps' is not a valid bool value; --config"),
    ],
)
def test_an_option_that_xla_does_not_take_is_one_line(own, words):
    with pytest.raises(UserError, match=words) as error:
        options.compiler_options(make_mesh(), own)
    assert "\n" not in str(error.value)


def test_every_platform_has_its_options():
    assert set(options.DEFAULTS) == {"cpu", "gpu", "tpu"} and not options.DEFAULTS["cpu"]
    assert platform_of(jax.devices()[0]) == "cpu" and platform_of(SimpleNamespace(platform="rocm")) == "gpu"
