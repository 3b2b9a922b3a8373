"""tunix's side of `compare.py`: supervised training by its `PeftTrainer`. Needs google-tunix, not camelid.

All weights of tunix's `Llama3` learn, from the trainer's own loss and in its own loop. Argument: the folder that
`camelid_side.py` has written.
"""

import functools
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import speed_task as task
from tunix import PeftTrainer, TrainingConfig
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.sft.peft_trainer import TrainingInput
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask


def load(folder: Path) -> Llama3:
    """The network of a folder in Hugging Face's format."""
    said = json.loads((folder / "config.json").read_text())
    config = ModelConfig(
        num_layers=said["num_hidden_layers"],
        vocab_size=said["vocab_size"],
        embed_dim=said["hidden_size"],
        hidden_dim=said["intermediate_size"],
        num_heads=said["num_attention_heads"],
        head_dim=said["head_dim"],
        num_kv_heads=said["num_key_value_heads"],
        rope_theta=said["rope_theta"],
        norm_eps=said["rms_norm_eps"],
        weight_tying=said["tie_word_embeddings"],
    )
    return create_model_from_safe_tensors(str(folder), config, dtype=jnp.float32)


def model_input(batch: TrainingInput) -> dict[str, jax.Array]:
    """The arguments of the trainer's loss for a batch without padding."""
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": build_positions_from_mask(batch.input_mask),
        "attention_mask": make_causal_attn_mask(batch.input_mask),
    }


class Training:
    """Training of a folder's network on its batch."""

    def __init__(self, folder: Path):
        optimizer = optax.chain(
            optax.clip_by_global_norm(task.CLIP_NORM),
            optax.adamw(task.LR, b1=task.B1, b2=task.B2, eps=task.EPS, weight_decay=task.WEIGHT_DECAY),
        )
        trainer = PeftTrainer(load(folder), optimizer, TrainingConfig(eval_every_n_steps=10**9))
        self.trainer = trainer.with_gen_model_input_fn(model_input)
        self.trainer.is_managed_externally = True  # `train` is called once a round and leaves the trainer open
        tokens = np.load(folder / "tokens.npy").astype(np.int32)
        self.batch = TrainingInput(input_tokens=tokens, input_mask=np.ones_like(tokens, bool))

    def run(self) -> int:
        """Takes the steps of a round, and returns the number of tokens."""
        self.trainer.train([self.batch] * task.STEPS)
        return task.STEPS * self.batch.input_tokens[:, 1:].size

    def loss(self) -> float:
        """The loss of the batch with the weights of now, in nats per token."""
        return float(self.trainer.loss_fn(self.trainer.model, **model_input(self.batch)))


@functools.cache
def training(folder: Path) -> Training:
    return Training(folder)


def main() -> None:
    shared = Path(sys.argv[1])
    for line in sys.stdin:
        match line.split():
            case [name, "loss"]:
                found = {"loss": training(shared / name).loss()}
            case [name, "train"]:
                trained = training(shared / name)
                begin = time.perf_counter()
                tokens = trained.run()
                found = {"tokens_per_second": tokens / (time.perf_counter() - begin)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
