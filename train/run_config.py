"""The configs of runs: what all recipes share, and the config of pretraining and instruction tuning.

A config is a frozen dataclass of sections. Each section stands in the file that uses it, with the type, range, default
and meaning of every setting.
"""

from dataclasses import dataclass, field
from typing import Annotated

from ..data.templates import load_template
from ..errors import UserError
from ..model.compiler_options import Option
from ..model.sharding import AXES
from ..settings.leaves import Count, Function, NotNegative, OneOf, Only, Path, Range, Regex, Units, Unset, Whole
from ..settings.length import Length
from .architecture import ModelSettings
from .batches import DataSettings
from .lengths import CheckpointSettings, Every
from .loop import Profile
from .lora_settings import LoraSettings
from .losses import find_loss
from .optimizer import OptimSettings, ScheduleSettings
from .stopping import StoppingSettings
from .trainable import LisaSettings
from .update import Guard
from .weights_and_biases import WandbSettings

Axis = Annotated[str, OneOf(*AXES)]
AxisSize = Annotated[int, Range(least=-1, most=2**20)]


@dataclass(frozen=True)
class MeshSettings:
    """The section `config.mesh`: devices along each axis. One size may be -1, for all devices that are left.

    A run tells its mesh when it starts, and so do `camelid show` and `camelid plan`.
    """

    data: AxisSize = 1
    """Devices along which batches are split and parameters are replicated."""

    fsdp: AxisSize = -1
    """Devices along which batches and parameters are split (fully sharded data parallelism)."""

    tensor: AxisSize = 1
    """Devices along which heads and feed-forward columns are split (tensor parallelism)."""

    context: AxisSize = 1
    """Devices along which the tokens of a row are split (context parallelism)."""

    def check(self, where: str) -> None:
        for name, size in vars(self).items():
            if size == 0:
                raise UserError(f"{where}.{name} = 0: give a whole number from 1 up, or -1 for the rest of the devices")


@dataclass(frozen=True)
class RunConfig:
    """The settings that all recipes share."""

    recipe: str = ""
    """Name of the recipe: pretrain, sft, reward, dpo, ppo, grpo or raft; or a function train(run) of one's own, named
    "package.module:name" or "file.py:name"."""

    seed: Whole = 0
    """Seed of all randomness of the run."""

    model: ModelSettings = ModelSettings()
    """The network."""

    init_from: Path | None = None
    """Path of a run or checkpoint, of any format, whose parameters the run starts from. None: random parameters."""

    init_weights: Annotated[str | None, OneOf("params", "ema"), Only("init_from")] = None
    """Which weights of the run at `init_from`: params, or ema, their moving average. Default: ema where the run kept
    one."""

    tokenizer: Path | None = None
    """Path of the tokenizer. None: that of `init_from`."""

    template: Path | None = None
    """Chat template: alpaca, vicuna, chatml, llama2, llama3, or a jinja file. None: that of `init_from`."""

    lora: LoraSettings = LoraSettings()
    """Low-rank adapters."""

    total: Annotated[Length, Units("steps", "epochs", "tokens", least=1)] = None
    """Length of the run."""

    optim: OptimSettings = OptimSettings()
    """The optimiser."""

    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate over the run."""

    ema_decay: Annotated[float | None, Range(least=0, below=1), Unset("no moving average")] = None
    """Decay of the moving average of parameters that evaluations use and checkpoints keep. None: there is none."""

    guard: Guard = Guard()
    """Which steps are skipped."""

    mesh: MeshSettings = MeshSettings()
    """Devices along each axis. -1 stands for all devices that are left."""

    partition_rules: list[tuple[Regex, list[Axis | list[Axis] | None]]] | None = None
    """(regex over parameter paths, mesh axes of each array axis). None: `model/sharding.py` PARTITION_RULES."""

    compiler_options: Annotated[dict[str, Option] | None, Unset("the defaults of the platform")] = None
    """Options of XLA's compiler for the programs of a step, such as `xla_tpu_scoped_vmem_limit_kib`. They are added to
    the defaults of the platform (`model/compiler_options.py` DEFAULTS). The value "default" leaves one to XLA."""

    log: Every = Length(20, "steps")
    """Interval between two reports."""

    eval: Every = Length(10.0, "percent")
    """Interval between two evaluations."""

    evals: dict[str, dict] = field(default_factory=dict)
    """Further evaluations: sections under names of one's own choice. Each has the settings of the evaluation that its
    leaf `use`, or else its name, names."""

    checkpoint: CheckpointSettings = CheckpointSettings()
    """When states are saved, and which of them are kept."""

    early_stopping: StoppingSettings = StoppingSettings()
    """Whether the run ends where a metric no longer improves."""

    wandb: WandbSettings = WandbSettings()
    """What is sent to Weights & Biases."""

    profile: Profile = Profile()
    """Steps that are traced."""

    def check(self, where: str) -> None:
        if self.template is not None:
            load_template(self.template)
        if (self.model.preset is None) == (self.init_from is None):
            raise UserError(f"set one of {where}.model.preset and {where}.init_from: they say what the network is")
        if self.lora.targets is not None and self.init_from is None:
            raise UserError(f"{where}.lora: adapters need {where}.init_from, the model that they are put on")


@dataclass(frozen=True)
class SupervisedConfig(RunConfig):
    """The config of pretraining (`recipe = "pretrain"`) and of instruction tuning (`recipe = "sft"`)."""

    recipe: str = "pretrain"
    """Name of the recipe: pretrain, sft, or a function train(run) of one's own."""

    data: DataSettings = DataSettings()
    """Text and conversations."""

    lisa: LisaSettings = LisaSettings()
    """Which layers learn."""

    loss: Function | None = None
    """A loss of one's own: the function make_loss(model, config) -> loss_fn (`train.losses`), named
    "package.module:name" or "file.py:name". None: cross-entropy of the next token."""

    z_loss: NotNegative = 0.0
    """Weight of the squared log of the softmax's normaliser in the loss (PaLM, arXiv:2204.02311, section 5)."""

    eval_batches: Count = 16
    """The most batches of each source's held-out part that an evaluation reads."""

    def check(self, where: str) -> None:
        super().check(where)
        if self.loss is not None:
            find_loss(self.loss, f"{where}.loss")
        if self.lisa.layers is not None and self.lora.targets is not None:
            raise UserError(
                f"{where}.lisa and {where}.lora: adapters stand on layers that stay as they are; choose one"
            )
