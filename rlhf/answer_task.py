"""The task of a policy: prompts, how answers are drawn, and what scores them.

PPO, GRPO and RAFT differ in how they learn from answers. Here is what they share: their common settings, the compiled
step around their `learn`, the evaluation of answers to held-out prompts, and the frozen models' part of the manifest.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints.decoding import text_of
from ..data.console import tell
from ..data.prefetch import device_batch
from ..errors import UserError
from ..model.sharding import BATCH, on_host
from ..settings.leaves import Units, Whole
from ..settings.length import Length
from ..train.batches import data_tables
from ..train.evaluations import chosen
from ..train.lengths import Every, Lengths
from ..train.loop import Evaluation, Finished, Loop
from ..train.network import Network
from ..train.optimizer import OptimSettings, ScheduleSettings
from ..train.run import Run
from ..train.run_config import RunConfig
from ..train.state import State
from ..train.update import Guard
from . import rollout, watch
from .costs import Cost
from .prompt_batches import PromptDataSettings, prompts_of, sampling_of, split_text, text_rows
from .reward_functions import check_functions, score_all
from .rewards import Rewards, RewardSettings, RewardSource, load_rewards
from .rollout import Experience, Rollout, RolloutSettings
from .watch import WatchSettings

Step = Callable[[Any, Mapping[str, Any]], tuple[Any, dict]]
"""step(state, batch) -> (state, metrics)."""

Draw = Callable[[State, Mapping[str, Any]], Experience]
"""draw(state, prompts) -> the policy's answers to the prompts, scored."""


@dataclass(frozen=True)
class AnswerConfig(RunConfig):
    """The settings that PPO, GRPO and RAFT share: a policy learns from rewards of its own answers.

    "OpenAI" is "Learning to summarize from human feedback", arXiv:2009.01325, with the earlier arXiv:1909.08593.
    """

    data: PromptDataSettings = PromptDataSettings()
    """Prompts that the policy answers."""

    total: Annotated[Length, Units("steps", "epochs", "tokens", least=1)] = Length(200, "steps")
    """Length of the run."""

    optim: OptimSettings = OptimSettings(lr=1e-5, weight_decay=0.0, b2=0.999)
    """The optimiser. b2 is Adam's default, as in OpenAI's code and TRL; pretraining takes 0.95."""

    schedule: ScheduleSettings = ScheduleSettings(name="linear", final=0.0)
    """The learning rate over the run."""

    guard: Guard = Guard(spike_sigma=None, max_streak=1)
    """Which steps are skipped. No loss is too high, because a policy's loss has no level that it should keep."""

    log: Every = Length(1, "steps")
    """Interval between two reports."""

    eval_rows: Whole = 4
    """Number of answers that each evaluation writes to samples.jsonl, to be read."""

    rollout: RolloutSettings = RolloutSettings()
    """How answers are drawn."""

    reward: RewardSettings = RewardSettings()
    """The reward of an answer."""

    eval_rewards: dict[str, RewardSource] = field(default_factory=dict)
    """Further sources of scores by their names, which evaluations report and the policy does not learn from."""

    watch: WatchSettings = WatchSettings()
    """What stops the run."""

    def scores(self) -> list[str]:
        """The names of all scores of an answer."""
        return [*self.reward.sources, *self.eval_rewards]

    def check(self, where: str) -> None:
        if self.init_from is None:
            raise UserError(f"{where}.init_from = None: give the path of the tuned model that the run starts from")
        super().check(where)
        if self.lora.dropout:
            raise UserError(
                f"{where}.lora.dropout = {self.lora.dropout:g}: answers are drawn without dropout and must be "
                "scored as they were drawn; set it to 0"
            )
        if not any(source.weight for source in self.reward.sources.values()):
            raise UserError(f"{where}.reward.sources: name a model, task or function with a weight other than 0")
        if both := set(self.reward.sources) & set(self.eval_rewards):
            raise UserError(
                f"{where}.eval_rewards: {', '.join(sorted(both))} is a name in {where}.reward.sources too; give another"
            )
        heldout = watch.heldout_names(self.scores(), ["*"] * 2) if self.data.heldout else []
        further = [f"eval/{name}/*" for name in self.evals]
        watch.check_names(self.watch, f"{where}.watch", [*heldout, *further])


@dataclass(frozen=True)
class GroupConfig(AnswerConfig):
    """The settings that GRPO and RAFT share: several answers to each prompt are compared with each other."""

    def check(self, where: str) -> None:
        super().check(where)
        if self.rollout.n < 2:
            raise UserError(f"{where}.rollout.n = 1: an answer is compared with others to its prompt; give 2 or more")


class AnswerTask:
    """The prompts that a policy answers in a run, how its answers are drawn, and what scores them.

    Attributes:
      run: the run.
      prompts: endless batches of training prompts.
      heldout: one pass over the held-out prompts; None if nothing is held out.
      sampling: how answers are drawn.
      rewards: the sources of the reward, `config.reward.sources`.
      eval_rewards: the sources of `config.eval_rewards`, whose scores evaluations report and nothing learns from.
      cost: the cost of answers that is held under a threshold; None if there is none.
      shaping: the function from an answer's score to the reward at its last token.
      score_parts: number of parts in which answers are scored one after the other.
      rows: the sharding of rows.

    Raises UserError for settings of `config.data`, `rollout` and `reward` that do not fit the model or each other.
    """

    def __init__(self, run: Run[AnswerConfig], cost: Cost | None = None):
        config, settings = run.config, run.config.rollout
        self.run = run
        given = dict(max_tokens=settings.max_tokens, temperature=settings.temperature, n=settings.n, stop=settings.stop)
        self.sampling = sampling_of(run, "config.rollout", **given)
        try:
            rollout.check_sampling(self.sampling)
        except ValueError as error:
            raise UserError(f"config.rollout: {error}") from None
        self.prompts, self.heldout = run.read(prompts_of)
        context = run.model.config.max_len
        if self.prompts.length + self.sampling.max_tokens > context:
            raise UserError(
                f"config.data.max_prompt_tokens = {self.prompts.length} and config.rollout.max_tokens = "
                f"{self.sampling.max_tokens} together exceed the network's context of {context} tokens; lower one"
            )
        self.rewards = load_rewards(run, config.reward.sources, "config.reward.sources")
        self.eval_rewards = load_rewards(run, config.eval_rewards, "config.eval_rewards")
        self.cost = cost
        self.shaping = config.reward.shaping
        self.score_parts = config.rollout.score_parts
        self.rows = NamedSharding(run.mesh, PartitionSpec(BATCH))
        self._functions_checked = False

    @property
    def _scored(self) -> list[Rewards]:
        """The sources of scores in the experience of a step: rewards and cost."""
        return [self.rewards, *([self.cost.rewards] if self.cost else [])]

    def compile_draw(self, network: Network, rollout: Callable) -> Draw:
        """Compiles draw(state, prompts) -> experience, one program for steps and for evaluations.

        Args:
          network: the networks that are trained.
          rollout: rollout(state, frozen, prompts) -> experience, which reads `params` and `step` of the state. `frozen`
            has the parameters that do not learn, {"reference", "rewards", "cost"}.
        """
        cost = self.cost.rewards.params if self.cost else {}
        frozen = {"reference": self.run.reference(), "rewards": self.rewards.params, "cost": cost}
        compiled = self._checked(network.compile_read(rollout, frozen))
        return lambda state, prompts: compiled({name: state[name] for name in ("params", "step")}, prompts)

    def compile(self, network: Network, draw: Draw, learn: Callable) -> Step:
        """Compiles a recipe's step(state, batch of prompts) -> (state, metrics): a draw, then an update.

        Between their two programs the host scores the answers with the Python functions, if there are any.

        Args:
          network: the networks that are trained.
          draw: the function of `compile_draw`.
          learn: learn(state, experience, text) -> (state, metrics). `text` has the pretraining rows of the batch, or
            is {}.
        """
        add_function_scores = self._function_scores(self.prompts.records, self._scored)
        compiled_learn = network.compile(lambda state, seen: learn(state, seen[0], text_rows(seen[1])))

        def step(state, batch):
            prompts, text = split_text(batch)
            experience = draw(state, prompts)
            if add_function_scores is not None:
                experience = add_function_scores(experience)
            return compiled_learn(state, (experience, text))

        return step

    def loop(
        self,
        network: Network,
        draw: Draw,
        batches: Any,
        lengths: Lengths,
        *,
        critic_from: str | None = None,
    ) -> contextlib.AbstractContextManager[Loop | Finished]:
        """The training loop of the run, with the evaluation of held-out prompts and the checks of `config.watch`.

        Args:
          network: the networks that are trained.
          draw: the function of `compile_draw`.
          batches: batches of prompts, with rows of text if the recipe learns from text too.
          lengths: length of the run, and its intervals in steps.
          critic_from: path of the checkpoint that the critic starts from; None for that of the policy.
        """
        run, config = self.run, self.run.config
        languages = {record["language"] for record in self.heldout.records} if self.heldout is not None else ()
        scores = [name for rewards in (*self._scored, self.eval_rewards) for name in rewards.names]
        names = watch.heldout_names(scores, sorted(languages)) if languages else []
        names += watch.evaluation_names(chosen(config.evals, run.evaluators))
        watch.check_names(config.watch, "config.watch", names)
        policy = lambda params: run.language_model(params["policy"])  # noqa: E731
        sums = [f"{source.weight:g} × {name} ({source.said})" for name, source in config.reward.sources.items()]
        tell(f"reward of an answer: {' + '.join(sums) or '0'}")
        return run.loop(
            network,
            batches,
            self.rows,
            lengths,
            evaluations=[
                *self._heldout_evaluation(network, draw, lengths.evaluate),
                *run.further_evaluations(lengths, policy),
            ],
            check=watch.Watch(config.watch, run.model.config.dtype, config.guard.max_streak),
            flops_per_token=run.flops_per_token(self.prompts.length + self.sampling.max_tokens),
            manifest={"policy": "policy"} | self._lineage(critic_from),
            tables=data_tables(self.prompts, {}),
            headline=watch.HEADLINE,
        )

    def _lineage(self, critic_from: str | None) -> dict[str, Any]:
        """The manifest's entries on the critic and the frozen models: identity, and which weights of each are read.

        A run that is resumed must find the same models again.
        """
        run = self.run
        sources = run.config.reward.sources | ({"cost": self.cost.settings.source} if self.cost else {})
        models = {name: run.open(x.model, x.weights) for name, x in sources.items() if x.model is not None}
        return {
            "critic": critic_from and run.open(critic_from).identity,
            "frozen": {"reference": run.start.identity} | {name: found.identity for name, found in models.items()},
            "frozen_weights": {name: found.weights for name, found in models.items()},
        }

    def _heldout_evaluation(self, network: Network, draw: Draw, every: int) -> list[Evaluation]:
        """The evaluation "heldout" in a list; an empty list if nothing is held out.

        It draws answers to held-out prompts as in training, and reports their scores over all prompts and by language.
        It gives `config.eval_rows` of the answers to read.
        """
        shown, prompts = self.run.config.eval_rows, self.heldout
        if prompts is None:
            return []
        score_further = jax.jit(self.eval_rewards.of_models)
        add_function_scores = self._function_scores(prompts.records, [*self._scored, self.eval_rewards])

        def measure(params: Any) -> tuple[dict[str, float], list[dict[str, str]]]:
            state = network.stored({"params": params, "step": jnp.zeros((), jnp.int32)})
            parts, languages, rows = [], [], []
            for number in range(len(prompts)):
                experience = draw(state, device_batch(prompts, number, self.rows))
                further = score_further(self.eval_rewards.params, experience.rows)
                experience = experience._replace(scores=experience.scores | further)
                experience = add_function_scores(experience) if add_function_scores else experience
                real = prompts.real(number) * self.sampling.n
                found, index_R = on_host((_by_answer(self.rewards, experience), experience.rows.index_R))
                parts.append({name: x[:real] for name, x in found.items()})
                languages += [prompts.records[i]["language"] for i in index_R[:real]]
                if len(rows) < shown:
                    by_turn = np.arange(real).reshape(-1, self.sampling.n).T.ravel()  # one answer of each prompt first
                    found = *self.decode(experience.rows), parts[-1], by_turn[: shown - len(rows)]
                    rows += _table(prompts.records, *found)
            return _means({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, languages), rows

        return [Evaluation("heldout", every, measure)]

    def _checked(self, draw: Callable) -> Callable:
        """The function `draw`, before whose first call all Python functions of the run are called once
        (`check_functions`). A run that is complete draws nothing, and so calls no function."""

        def checked_draw(*args: Any) -> Any:
            if not self._functions_checked:
                sources = [*self._scored, *([self.eval_rewards] if self.heldout is not None else [])]
                functions = {name: part.function for each in sources for name, part in each.functions.items()}
                check_functions(functions, self.prompts.records)
                self._functions_checked = True
            return draw(*args)

        return checked_draw

    def _function_scores(self, records: Sequence[Mapping], rewards: Sequence[Rewards]) -> Callable | None:
        """The function that adds the scores of all Python functions to an experience; None if there are none.

        Args:
          records: the records that `index_R` of the experience points into.
          rewards: the sources of scores.
        """
        functions = {name: part.function for each in rewards for name, part in each.functions.items()}
        if not functions:
            return None
        where = NamedSharding(self.run.mesh, PartitionSpec())

        def add(experience: Experience) -> Experience:
            texts, index = self.decode(experience.rows)
            scores = score_all(functions, [records[i] for i in index], texts)
            return experience._replace(scores=experience.scores | jax.device_put(scores, where))

        def shapes(experience: Experience) -> Experience:
            answers = experience.rows.index_R.shape
            scores = {name: jax.ShapeDtypeStruct(answers, jnp.float32, sharding=where) for name in functions}
            return experience._replace(scores=experience.scores | scores)

        return self.run.on_host(add, shapes)

    def decode(self, rows: Rollout) -> tuple[list[str], list[int]]:
        """The texts of all answers, without stop token or stop string, and the indices of their prompts' records.

        With several hosts, each gets the answers of all hosts.
        """
        tokens_RT, mask_RM, index_R = on_host((rows.tokens_RT, rows.mask_RM, rows.index_R))
        answers = (row[-len(mask) :][mask > 0] for row, mask in zip(tokens_RT, mask_RM, strict=True))
        texts = [text_of(self.run.tokenizer, answer.tolist(), self.sampling).strip() for answer in answers]
        return texts, index_R.tolist()


def _by_answer(rewards: Rewards, experience: Experience) -> dict[str, Any]:
    """Arrays [R], an entry for each answer: weighted score, each score, KL to the reference in nats, length, ended."""
    rows = experience.rows
    return {
        "scores": rewards.total(experience.scores),
        **{f"scores/{name}": score_R for name, score_R in experience.scores.items()},
        "kl": jnp.sum(experience.kl_exact_RM * rows.mask_RM, axis=1),
        "length": rows.lengths_R,
        "eos_rate": rows.stopped_R,
    }


def _means(by_answer: Mapping[str, np.ndarray], languages: Sequence[str]) -> dict[str, float]:
    """The mean of each array [R] over answers, and of each score by the language of the prompt if there are several."""
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
    places: Sequence[int],
) -> list[dict[str, str]]:
    """The answers at `places` as rows {"prompt", "answer", "score", "KL"}, all text.

    `texts` are the answers, `index` their prompts' places in `records`, `by_answer` the arrays of `_by_answer`.
    """
    return [
        {
            "prompt": records[index[row]]["messages"][-1]["content"],
            "answer": texts[row],
            "score": f"{by_answer['scores'][row]:.2f}",
            "KL": f"{by_answer['kl'][row]:.2f}",
        }
        for row in places
    ]
