"""TRL's side of `ppo_compare.py`: its `PPOTrainer`, last released in TRL 1.12. Does not need camelid.

The trainer runs its own loop. A callback stops it before each iteration until the next line of input. Argument: the
folder that `camelid_side.py` has written, of which only the network's shape is read.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TextIO

import ppo_task as task
import torch
import transformers
from transformers.trainer_callback import PrinterCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

CONFIG = transformers.LlamaConfig.from_pretrained(
    f"{sys.argv[1]}/{task.SHAPE}", num_labels=1, bos_token_id=None, eos_token_id=None, pad_token_id=None
)
OUTSIDE = CONFIG.vocab_size  # an id that is never sampled


class Clock(transformers.TrainerCallback):
    """Prints, for each line of input, the seconds of an iteration and of its pieces between the watched calls."""

    def __init__(self, answers: TextIO):
        self.answers = answers
        self.marks: dict[str, float] = {}

    def listen(self, name: str) -> None:
        """Records the time at which the function `name` of the trainer's module last returned."""
        function: Callable = getattr(ppo_trainer, name)

        def called(*arguments):
            result = function(*arguments)
            self.marks[name] = time.perf_counter()
            return result

        setattr(ppo_trainer, name, called)

    def wait(self) -> None:
        """Waits for the next line of input; exits at its end."""
        if not sys.stdin.readline():
            raise SystemExit
        self.marks["begin"] = time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.wait()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        end = time.perf_counter()
        begin, rolled, scored = (self.marks[name] for name in ("begin", "batch_generation", "get_reward"))
        parts = {"rollout": rolled - begin, "scoring": scored - rolled, "update": end - scored}
        print(json.dumps({"seconds": end - begin} | parts), file=self.answers, flush=True)
        self.wait()


def settings(folder: str) -> PPOConfig:
    """The settings of the task, with everything else switched off."""
    return PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        num_sample_generations=0,
        per_device_train_batch_size=task.PROMPTS,
        local_rollout_forward_batch_size=task.PROMPTS,
        total_episodes=task.PROMPTS * 10**6,
        response_length=task.ANSWER,
        temperature=task.TEMPERATURE,
        num_ppo_epochs=task.EPOCHS,
        num_mini_batches=task.MINIBATCHES,
        cliprange=task.CLIP,
        cliprange_value=task.VALUE_CLIP,
        vf_coef=task.VALUE_COEF,
        gamma=task.GAMMA,
        lam=task.LAM,
        kl_coef=task.KL_COEF,
        kl_estimator="k1",
        learning_rate=task.LR,
        lr_scheduler_type="constant",
    )


def make_trainer(folder: str, clock: Clock) -> PPOTrainer:
    """The trainer, with random networks and random prompts."""
    policy, reference = (transformers.LlamaForCausalLM(CONFIG) for _ in range(2))
    reward, critic = (transformers.LlamaForSequenceClassification(CONFIG) for _ in range(2))
    trainer = PPOTrainer(
        args=settings(folder),
        processing_class=SimpleNamespace(pad_token_id=OUTSIDE, eos_token_id=OUTSIDE),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=list(torch.randint(CONFIG.vocab_size, (100 * task.PROMPTS, task.PROMPT))),
        data_collator=lambda rows: {"input_ids": torch.stack(rows)},
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def main() -> None:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    clock = Clock(sys.stdout)
    clock.listen("batch_generation")
    clock.listen("get_reward")
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        make_trainer(folder, clock).train()


if __name__ == "__main__":
    main()
