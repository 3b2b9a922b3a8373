"""Pretraining: the next token of raw text (LLaMA, arXiv:2302.13971, section 2)."""

from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints.heldout_loss import heldout_loss
from ..model.sharding import BATCH
from .batches import check_rows, data_of, data_tables
from .lengths import lengths_of
from .loop import Evaluation, check_streak
from .losses import loss_of
from .run import Result, Run
from .run_config import SupervisedConfig


def train(run: Run[SupervisedConfig]) -> Result:
    """Pretrains as the run's config says (`configs/base.py` names every setting).

    Conversations may stand in the mixture too, where `config.template` or that of `config.init_from` says how they
    become text.
    """
    config, model = run.config, run.model
    with run.on_mesh():
        # Data: rows of text, cut from documents that follow one another.
        check_rows(config.data.batch_size, config.data.seq_len, config.optim.accumulate, run.mesh, model.config.max_len)
        run.check_rules()
        batches, heldout = run.read(data_of)
        rows = NamedSharding(run.mesh, PartitionSpec(BATCH, "context"))

        # Network: which of its parameters learn is what config.optim.frozen, config.lora and config.lisa say.
        lengths = lengths_of(config, batches)
        network = run.network(run.initial(model.init, run.start), lengths, lisa=config.lisa)

        # Loss and step: cross-entropy of every token, or config.loss, averaged over the whole batch.
        loss_fn = loss_of(model, config)
        step = network.compile(run.update(network, loss_fn))

        # Evaluations: the loss on what was held out of each source, and what config.evals names.
        trained = model.config.trained_len
        borders = [trained] if trained is not None and trained < batches.length else []  # of a stretched context
        measure = heldout_loss(model, heldout, run.tokenizer, rows, config.eval_batches, borders)
        evaluations = [Evaluation("heldout", lengths.evaluate, measure)] if heldout else []
        evaluations += run.further_evaluations(lengths, run.language_model)

        # Loop.
        with run.loop(
            network,
            batches,
            rows,
            lengths,
            evaluations=evaluations,
            check=check_streak(config.guard.max_streak),
            flops_per_token=run.flops_per_token(batches.length),
            tables=data_tables(batches, heldout),
        ) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"]), loop)
