"""What answers are drawn for and what they are worth: prompts, how answers are drawn, and what scores them.

PPO, GRPO and RAFT differ in what they learn from an answer. What they share is here: the step around their `learn`, the
evaluation of answers to held-out prompts, and what a checkpoint says of the frozen models.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints.decoding import text_of
from ..data.prefetch import device_batch
from ..errors import UserError
from ..model.sharding import BATCH
from ..settings.leaves import Units, Whole
from ..settings.length import Length
from ..train.batches import data_tables
from ..train.lengths import Every, Lengths
from ..train.loop import Evaluation, Finished, Loop
from ..train.network import Network
from ..train.optimizer import OptimSettings, ScheduleSettings
from ..train.run import Run
from ..train.run_config import RunConfig
from ..train.update import Guard
from . import rollout, watch
from .costs import Cost
from .prompt_batches import PromptDataSettings, prompts_of, sampling_of, split_text
from .rewards import Rewards, RewardSettings, Scorer, load_rewards
from .rollout import Experience, Rollout, RolloutSettings
from .watch import WatchSettings

Step = Callable[[Any, Mapping[str, Any]], tuple[Any, dict]]


@dataclass(frozen=True)
class AnswerConfig(RunConfig):
    """The settings that runs share whose policy learns from rewards of its own answers.

    "OpenAI" is "Learning to summarize from human feedback", arXiv:2009.01325, and the line of arXiv:1909.08593 before
    it.
    """

    data: PromptDataSettings = PromptDataSettings()
    """Prompts to answer."""

    total: Annotated[Length, Units("steps", "epochs", "tokens", least=1)] = Length(200, "steps")
    """Length of the run."""

    optim: OptimSettings = OptimSettings(lr=1e-5, weight_decay=0.0, b2=0.999)
    """The optimiser. b2 is Adam's own, as in OpenAI's code and TRL; 0.95 is for pretraining."""

    schedule: ScheduleSettings = ScheduleSettings(name="linear", final=0.0)
    """The learning rate over the run."""

    guard: Guard = Guard(spike_sigma=None, max_streak=1)
    """Which steps are skipped. A policy's loss has no level that it should keep, so none is too high."""

    log: Every = Length(1, "steps")
    """Interval between two reports."""

    eval_rows: Whole = 4
    """Answers that each evaluation shows."""

    rollout: RolloutSettings = RolloutSettings()
    """How answers are drawn."""

    reward: RewardSettings = RewardSettings()
    """What answers are worth."""

    eval_rewards: dict[str, Scorer] = field(default_factory=dict)
    """Further sources of scores, by their names, which evaluations report and nothing learns from."""

    watch: WatchSettings = WatchSettings()
    """What stops the run."""

    def scores(self) -> list[str]:
        """The names of all scores of an answer."""
        return [*self.reward.sources, *self.eval_rewards]

    def check(self, where: str) -> None:
        if self.init_from is None:
            raise UserError(f"{where}.init_from = None: give the path of a tuned model, which the run starts from")
        super().check(where)
        if self.lora.dropout:
            raise UserError(f"{where}.lora.dropout: tokens are scored as they were drawn here; set it to 0")
        if not any(source.weight for source in self.reward.sources.values()):
            raise UserError(f"{where}.reward.sources: name at least one model, task or function that rewards answers")
        if both := set(self.reward.sources) & set(self.eval_rewards):
            raise UserError(f"{where}.eval_rewards: {', '.join(sorted(both))} is a name of {where}.reward.sources too")
        heldout = watch.heldout_names(self.scores(), ["*"] * 2) if self.data.heldout else []
        further = [f"eval/{name}/*" for name in self.evals]
        watch.check_names(self.watch, f"{where}.watch", [*heldout, *further])


@dataclass(frozen=True)
class GroupConfig(AnswerConfig):
    """The settings that runs share which compare several answers to a prompt."""

    def check(self, where: str) -> None:
        super().check(where)
        if self.rollout.n < 2:
            raise UserError(f"{where}.rollout.n = 1: answers are compared with others to their prompt; give 2 or more")


class AnswerTask:
    """What a policy answers in a run, and what its answers are worth.

    Attributes:
      prompts: endless batches of prompts to learn on.
      heldout: the prompts of evaluations; None where nothing is held out.
      sampling: how answers are drawn.
      rewards: what answers are worth, by `config.reward`.
      eval_rewards: further scores that evaluations give to answers and nothing learns from.
      cost: the cost of answers that is held under a threshold; None where there is none.
      shaping: from an answer's score to the reward at its last token.
      score_parts: parts in which answers are scored one after the other.
      rows: where rows of answers lie.

    Raises UserError for settings of `config.data`, `rollout` and `reward` that do not fit.
    """

    def __init__(self, run: Run[AnswerConfig], cost: Cost | None = None):
        config, drawn = run.config, run.config.rollout
        self.run = run
        how = dict(max_tokens=drawn.max_tokens, temperature=drawn.temperature, n=drawn.n, stop=drawn.stop)
        self.sampling = sampling_of(run, "config.rollout", **how)
        try:
            rollout.check_sampling(self.sampling)
        except ValueError as error:
            raise UserError(f"config.rollout: {error}") from None
        self.prompts, self.heldout = prompts_of(config.data, run.tokenizer, run.template, config.seed)
        context = run.model.config.max_len
        if self.prompts.length + self.sampling.max_tokens > context:
            raise UserError(
                f"config.data.max_prompt_tokens {self.prompts.length} and config.rollout.max_tokens "
                f"{self.sampling.max_tokens} are more than the network's context of {context} tokens; shorten one"
            )
        self.rewards = load_rewards(run, config.reward.sources, "config.reward.sources")
        self.eval_rewards = load_rewards(run, config.eval_rewards, "config.eval_rewards")
        self.cost = cost
        self.shaping = config.reward.shaping
        self.score_parts = config.rollout.score_parts
        self.rows = NamedSharding(run.mesh, PartitionSpec(BATCH))

    @property
    def _scored(self) -> list[Rewards]:
        """The rewards whose scores an experience has."""
        return [self.rewards, *([self.cost.rewards] if self.cost else [])]

    def frozen_params(self) -> dict[str, Any]:
        """The parameters that rollouts are scored with and that do not learn: reference, reward and cost models."""
        cost = self.cost.rewards.params if self.cost else {}
        return {"reference": self.run.reference(), "rewards": self.rewards.params, "cost": cost}

    def compile(self, network: Network, rollout: Callable, learn: Callable, frozen: Mapping[str, Any]) -> Step:
        """The step: rollouts, scores of Python functions, learning.

        It is one program where every reward is a model, and two with a call of the host between them otherwise.

        Args:
          network: what learns.
          rollout: rollout(state, frozen, prompts) -> experience.
          learn: learn(state, experience, text) -> (state, metrics).
          frozen: as `frozen_params` gives them.
        """
        on_host = self._score_functions(self.prompts.records, self._scored)
        if on_host is None:

            def whole(state, frozen, batch):
                prompts, text = split_text(batch)
                return learn(state, rollout(state, frozen, prompts), text)

            return network.compile(whole, frozen)
        first = network.compile_read(rollout, frozen)
        second = network.compile(lambda state, batch: learn(state, *batch))
        split = jax.jit(split_text)

        def halves(state, batch):
            prompts, text = split(batch)
            return second(state, (on_host(first(state, prompts)), text))

        return halves

    def loop(
        self,
        network: Network,
        rollout: Callable,
        frozen: Mapping[str, Any],
        batches: Any,
        lengths: Lengths,
        *,
        critic_from: str | None = None,
    ) -> contextlib.AbstractContextManager[Loop | Finished]:
        """The loop of the run, with an evaluation on held-out prompts and the checks of `config.watch`.

        Args:
          network: what learns.
          rollout: rollout(state, frozen, prompts) -> experience.
          frozen: as `frozen_params` gives them.
          batches: prompts, with text beside them where the recipe learns from it too.
          lengths: of the run.
          critic_from: path of the checkpoint that the critic starts from, where it has one of its own.
        """
        run, config = self.run, self.run.config
        languages = {record["language"] for record in self.heldout.records} if self.heldout is not None else ()
        scores = [name for rewards in (*self._scored, self.eval_rewards) for name in rewards.names]
        names = watch.heldout_names(scores, sorted(languages)) if languages else []
        names += watch.evaluation_names(config.evals, run.evaluators)
        watch.check_names(config.watch, "config.watch", names)
        policy = lambda params: run.language_model(params["policy"])  # noqa: E731
        return run.loop(
            network,
            batches,
            self.rows,
            lengths,
            evaluations=[
                *self._heldout_evaluation(rollout, frozen, lengths.evaluate),
                *run.further_evaluations(lengths.evaluate, policy),
            ],
            check=watch.Watch(config.watch, run.model.config.dtype, config.guard.max_streak, run.workdir),
            flops_per_token=run.model.config.flops_per_token(self.prompts.length + self.sampling.max_tokens),
            manifest={"policy": "policy"} | self._lineage(critic_from),
            tables=data_tables(self.prompts, {}),
            headline=watch.HEADLINE,
        )

    def _lineage(self, critic_from: str | None) -> dict[str, Any]:
        """Path and state of every frozen model, and which of its parameters the run takes: what it must find again when
        it resumes."""
        run = self.run
        sources = run.config.reward.sources | ({"cost": self.cost.settings.source} if self.cost else {})
        models = {name: run.open(x.model, x.weights) for name, x in sources.items() if x.model is not None}
        return {
            "critic": critic_from and run.open(critic_from).identity,
            "frozen": {"reference": run.start.identity} | {name: found.identity for name, found in models.items()},
            "frozen_weights": {name: found.weights for name, found in models.items()},
        }

    def _heldout_evaluation(self, rollout: Callable, frozen: Mapping[str, Any], every: int) -> list[Evaluation]:
        """The evaluation "heldout": answers to held-out prompts, drawn as in training, and what they score, over all
        and by language; `config.eval_rows` of them to read. No evaluation where nothing is held out."""
        shown, prompts = self.run.config.eval_rows, self.heldout
        if prompts is None:
            return []
        answer, judge = jax.jit(rollout), jax.jit(self.eval_rewards.of_models)
        on_host = self._score_functions(prompts.records, [*self._scored, self.eval_rewards])

        def measure(params: Any) -> tuple[dict[str, float], list[dict[str, str]]]:
            state = {"params": params, "step": jnp.zeros((), jnp.int32)}
            parts, languages, rows = [], [], []
            for number in range(len(prompts)):
                seen = answer(state, frozen, device_batch(prompts, number, self.rows))
                seen = seen._replace(scores=seen.scores | judge(self.eval_rewards.params, seen.rows))
                seen = on_host(seen) if on_host else seen
                real = prompts.real(number) * self.sampling.n
                parts.append({name: np.asarray(x)[:real] for name, x in _by_answer(self.rewards, seen).items()})
                languages += [prompts.records[i]["language"] for i in np.asarray(seen.rows.index_R)[:real]]
                if len(rows) < shown:
                    found = *self.decode(seen.rows), parts[-1], min(shown - len(rows), real)
                    rows += _table(prompts.records, *found)
            return _means({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, languages), rows

        return [Evaluation("heldout", every, measure)]

    def _score_functions(self, records: Sequence[Mapping], rewards: Sequence[Rewards]) -> Callable | None:
        """The function that adds to an experience what Python functions score; None where there are none.

        records: those that the experience's `index` points to.
        """
        with_functions = [each for each in rewards if each.functions]
        if not with_functions:
            return None
        where = NamedSharding(self.run.mesh, PartitionSpec())

        def add(seen: Experience) -> Experience:
            texts, index = self.decode(seen.rows)
            scores = {}
            for each in with_functions:
                scores |= each.of_functions([records[i] for i in index], texts)
            return seen._replace(scores=seen.scores | jax.device_put(scores, where))

        return add

    def decode(self, rows: Rollout) -> tuple[list[str], list[int]]:
        """The text of every answer, without what ended it, and the number of its prompt's record, on every host."""
        found = (rows.tokens_RT, rows.mask_RM, rows.index_R)
        if jax.process_count() == 1:
            tokens_RT, mask_RM, index_R = jax.device_get(found)
        else:
            tokens_RT, mask_RM, index_R = multihost_utils.process_allgather(found, tiled=True)
        answers = (row[-len(mask) :][mask > 0] for row, mask in zip(tokens_RT, mask_RM, strict=True))
        texts = [text_of(self.run.tokenizer, answer.tolist(), self.sampling).strip() for answer in answers]
        return texts, index_R.tolist()


def _by_answer(rewards: Rewards, seen: Experience) -> dict[str, Any]:
    """Numbers about each answer, [R]: reward, its parts, KL to the reference in nats, length, whether it ended."""
    mask_RM = seen.rows.mask_RM
    return {
        "scores": rewards.total(seen.scores),
        **{f"scores/{name}": score_R for name, score_R in seen.scores.items()},
        "kl": jnp.sum(seen.kl_exact_RM * mask_RM, axis=1),
        "length": seen.rows.lengths_R,
        "eos_rate": seen.rows.stopped_R,
    }


def _means(by_answer: Mapping[str, np.ndarray], languages: Sequence[str]) -> dict[str, float]:
    """The mean of each number; where prompts are in several languages, that of each score in each of them too."""
    means = {name: float(np.mean(x)) for name, x in by_answer.items()}
    scores = {name: x for name, x in by_answer.items() if name.startswith("scores/")}
    found, languages = sorted(set(languages)), np.array(languages)
    for language in found if len(found) > 1 else ():
        means |= {f"{name}/{language}": float(np.mean(x[languages == language])) for name, x in scores.items()}
    return means


def _table(
    records: Sequence[Mapping],
    texts: Sequence[str],
    index: Sequence[int],
    by_answer: Mapping[str, np.ndarray],
    count: int,
) -> list[dict[str, str]]:
    """The first answers of a batch as rows to read."""
    return [
        {
            "prompt": records[index[row]]["messages"][-1]["content"],
            "answer": texts[row],
            "score": f"{by_answer['scores'][row]:.2f}",
            "KL": f"{by_answer['kl'][row]:.2f}",
        }
        for row in range(count)
    ]
