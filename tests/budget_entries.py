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
    "alpaca_7b": Entry(
        _tuned("alpaca", "7b", "seq_len=2048,batch_size=8,dtype=bfloat16"),
        "a100-80gb:4",
        "llama-7b",
        title="Alpaca 7B, 2,048 tokens",
    ),
    "alpaca_13b": Entry(
        _tuned("alpaca", "13b", "seq_len=2048,batch_size=8,lr=1e-5,epochs=5,dtype=bfloat16"),
        "a100-80gb:8",
        "llama-13b",
        title="Alpaca 13B, 2,048 tokens",
    ),
    "vicuna_7b": Entry(
        _tuned("vicuna", "7b", "dtype=bfloat16"), "a100-80gb:8", "llama-7b", title="Vicuna 7B, 2,048 tokens"
    ),
    "vicuna_13b": Entry(
        _tuned("vicuna", "13b", "dtype=bfloat16"), "a100-80gb:8", "llama-13b", title="Vicuna 13B, 2,048 tokens"
    ),
    "vicuna_7b_16k": Entry(
        _tuned("vicuna", "7b", "seq_len=16384,rope=linear,dtype=bfloat16"),
        "a100-80gb:8",
        "llama-7b",
        ("--config.optim.accumulate=4",),
        "Vicuna 7B, 16,384 tokens",
    ),
    "vicuna_13b_16k": Entry(
        _tuned("vicuna", "13b", "seq_len=16384,rope=linear,dtype=bfloat16"),
        "a100-80gb:8",
        "llama-13b",
        ("--config.optim.accumulate=4",),
        "Vicuna 13B, 16,384 tokens",
    ),
    "colossalchat_7b": Entry(
        "ppo/colossalchat.py:dtype=bfloat16", "a100-80gb:8", "llama-7b", title="ColossalChat 7B, PPO"
    ),
    "lora_7b": Entry(_tuned("lora", "7b", "source=a.json,dtype=bfloat16"), "rtx4090:1", "llama-7b", title="LoRA 7B"),
    "qlora_7b": Entry(
        _tuned("lora", "7b", "source=a.json,dtype=bfloat16,quantize=nf4"), "rtx4090:1", "llama-7b", title="QLoRA 7B"
    ),
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
