"""Steps whose budgets are kept in tests/budgets: the shipped configs on the devices that they are meant for, and small
ones for tests."""

from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
BUDGETS = TESTS / "budgets"
CONFIGS = TESTS.parent / "configs"


@dataclass(frozen=True)
class Entry:
    """A step with a budget."""

    config: str
    """The config file, with its arguments: below configs/, or `tiny.py` below tests/."""
    topology: str
    """The devices."""
    architecture: str | None = None
    """Architecture of checkpoints that the config names and that are not there."""
    overrides: tuple[str, ...] = ()
    """Changed settings, as on the command line."""
    title: str = ""
    """Name in the table of docs/scaling.md; empty for a step that is not in the table."""

    @property
    def path(self) -> str:
        """The config file that is read, with its arguments."""
        return f"{TESTS if self.config.startswith('tiny') else CONFIGS}/{self.config}"

    @property
    def command(self) -> str:
        """The command that plans the step."""
        architecture = f" --architecture={self.architecture}" if self.architecture else ""
        words = f"--config=configs/{self.config}{architecture} --topology={self.topology}"
        return " ".join([f"camelid plan {words}", *self.overrides])


def _tuned(name: str, size: str, arguments: str) -> str:
    return f"sft/{name}.py:init_from=llama-{size},{arguments}"


ENTRIES: dict[str, Entry] = {
    "llama_7b": Entry("pretrain/llama.py:size=7b", "v5p:4x4x8", title="LLaMA 7B, pretraining"),
    "llama_13b": Entry("pretrain/llama.py:size=13b", "v5p:4x8x8", title="LLaMA 13B, pretraining"),
    "llama_33b": Entry("pretrain/llama.py:size=33b", "v5p:8x8x8", title="LLaMA 33B, pretraining"),
    "llama_65b": Entry("pretrain/llama.py:size=65b", "v5p:8x8x8", title="LLaMA 65B, pretraining"),
    "small_pretrain": Entry(
        "tiny.py:recipe=pretrain", "cpu:8", overrides=("--config.model.n_layers=1", "--config.model.unroll=1")
    ),
    "small_sft": Entry(
        "tiny.py:recipe=sft,init_from=planned",
        "cpu:8",
        "nano-test",
        ("--config.model.unroll=1", "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
    ),
}
"""{name: entry}."""
