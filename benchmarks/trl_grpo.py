"""TRL's side of `grpo_compare.py`: its `GRPOTrainer`, with transformers' sampler. Does not need camelid.

The trainer runs its own loop. A callback stops it before each step until the next line of input. Argument: the folder
that `camelid_side.py` has written.
"""

import contextlib
import json
import sys
import time
from tempfile import TemporaryDirectory
from typing import TextIO

import grpo_task as task
import numpy as np
import tokenizers
import transformers
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(transformers.TrainerCallback):
    """Prints, for each line of input, the seconds of a step and the mean reward of its answers."""

    def __init__(self, answers: TextIO):
        self.answers, self.rewards = answers, []

    def reward(self, completions: list[str], **_) -> list[float]:
        """The rewards of a step's answers."""
        self.rewards = [task.reward(answer) for answer in completions]
        return self.rewards

    def wait(self) -> None:
        """Waits for the next line of input; exits at its end."""
        if not sys.stdin.readline():
            raise SystemExit
        self.begin = time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.wait()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        found = {"seconds": time.perf_counter() - self.begin, "reward": float(np.mean(self.rewards))}
        print(json.dumps(found), file=self.answers, flush=True)
        self.wait()


def words(vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of `grpo_task.py`, with an id for padding and the end that the network never draws."""
    outside = "<outside>"
    ids = {task.decode([token]): token for token in range(vocab_size)} | {outside: vocab_size}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=outside))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token=outside, pad_token=outside)


def settings(folder: str) -> GRPOConfig:
    """The settings of the task, with everything else switched off."""
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        per_device_train_batch_size=task.PROMPTS * task.ANSWERS,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=task.ANSWERS,
        max_completion_length=task.ANSWER,
        max_steps=10**9,
        temperature=task.TEMPERATURE,
        top_k=0,
        beta=task.KL_COEF,
        epsilon=task.CLIP,
        loss_type="grpo",
        learning_rate=task.LR,
        lr_scheduler_type="constant",
        adam_beta1=task.B1,
        adam_beta2=task.B2,
        adam_epsilon=task.EPS,
        weight_decay=0.0,
        max_grad_norm=0.0,
    )


def main() -> None:
    network, clock = sys.argv[1], Clock(sys.stdout)
    transformers.set_seed(0)
    transformers.logging.set_verbosity_error()
    vocab_size = transformers.LlamaConfig.from_pretrained(network).vocab_size
    prompts = np.random.default_rng(0).integers(1, vocab_size, (100 * task.PROMPTS, task.PROMPT)).tolist()
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = GRPOTrainer(
            model=network,
            reward_funcs=clock.reward,
            args=settings(folder),
            train_dataset=Dataset.from_list([{"prompt": task.decode(prompt)} for prompt in prompts]),
            processing_class=words(vocab_size),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


if __name__ == "__main__":
    main()
