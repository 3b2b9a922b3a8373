"""The sections of configs that learn from preferences and rewards, with the type and range of each leaf."""

from collections.abc import Mapping
from typing import Annotated, Any

from ..data.json_values import shown
from ..errors import UserError
from ..train.leaves import Count, Finite, NotNegative, OneOf, Only, Path, Positive, Range, Share, Whole
from ..train.sections import Data, OnError, Packing, RowLength, Rows, Run, Source
from . import dpo, grpo, ppo, raft, reward, rewards, watch


class PairData:
    """`config.data` of preference pairs."""

    mixture: dict[str, Source]
    seq_len: RowLength
    batch_size: Rows
    heldout: Annotated[float, Range(least=0, below=1)]
    on_error: OnError
    max_record_bytes: Count = 2**26
    noise: Share
    max_pairs: Count | None
    sides: Annotated[int, Range(least=2, most=1000)] = 2
    check = Data.check


class PromptData:
    """`config.data` of prompts. heldout_prompts: may be left out where `heldout` is 0."""

    mixture: dict[str, Source]
    batch_size: Rows
    heldout: Annotated[float, Range(least=0, below=1)]
    on_error: OnError
    max_record_bytes: Count = 2**26
    max_prompt_tokens: RowLength
    heldout_prompts: Count = 64

    check = Data.check


class Calibration:
    """`config.normalise`, on the reference's own answers."""

    prompts: Whole
    max_tokens: Count
    temperature: NotNegative


def _check_start(where: str, values: Mapping[str, Any]) -> None:
    if values["init_from"] is None:
        raise UserError(f"{where}.init_from = None: give the path of a tuned model, which the run starts from")


class Pairs(Run):
    """What configs of preference pairs share."""

    data: PairData
    eval_batches: Count

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        _check_start(where, values)
        Run.check(where, values)


class Reward(Pairs):
    """A config of a reward or cost model."""

    heads: Annotated[int, Range(least=1, most=1000)]
    pessimism: NotNegative
    objective: reward.Objective
    normalise: Calibration

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        Pairs.check(where, values)
        alone = {"pessimism": values["pessimism"], "objective.bootstrap": values["objective"]["bootstrap"]}
        for name, value in alone.items() if values["heads"] == 1 else ():
            if value:
                raise UserError(f"{where}.{name} = {shown(value)} does nothing where {where}.heads is 1: raise that")
        room, most = values["data"]["seq_len"], values["normalise"]["max_tokens"]
        if values["normalise"]["prompts"] and most >= room:
            raise UserError(
                f"{where}.normalise.max_tokens = {most}: prompt and answer share a row of {where}.data.seq_len {room}; "
                "give less"
            )
        if values["normalise"]["prompts"] and not values["data"]["heldout"]:
            raise UserError(f"{where}.normalise.prompts: these are held-out prompts; set {where}.data.heldout above 0")
        if len(values["evals"]):
            raise UserError(f"{where}.evals: these need a model that answers; a reward model is measured on pairs")


class DPO(Pairs):
    """A config of direct preference optimisation."""

    dpo: dpo.DPOSettings

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        Pairs.check(where, values)
        if values["dpo"]["kind"] == "kto" and values["data"]["batch_size"] < 2:
            raise UserError(
                f"{where}.data.batch_size = 1: KTO measures its point of reference on answers to the other prompts of "
                "a batch; give 2 or more"
            )


class Rollout:
    """`config.rollout`."""

    max_tokens: RowLength
    temperature: Positive
    n: Annotated[int, Range(least=1, most=2**16)]
    score_parts: Count
    stop: list[Path] = ()


class Scorer:
    """A source of scores: a reward model's path, a task such as "walks" or "safe_sums:cost", or a function,
    "package.module:name"."""

    model: Path = None
    weights: Annotated[str | None, OneOf("params", "ema"), Only("model")] = None
    task: Path = None
    function: Path = None
    weight: Finite = 1.0
    pessimism: Annotated[NotNegative, Only("model", default=0.0)] = 0.0

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        rewards.check_kind(values, where)
        if "model" not in values:
            rewards.function_of(values, where)


class RewardSources:
    """`config.reward`."""

    sources: dict[str, Scorer]
    shaping: rewards.Shaping


class Answers(Run):
    """What configs that learn from rewards of own answers share."""

    data: PromptData
    eval_rows: Whole
    rollout: Rollout
    reward: RewardSources
    judges: dict[str, Scorer]
    watch: watch.Limits

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        _check_start(where, values)
        Run.check(where, values)
        if values["lora"]["dropout"]:
            raise UserError(f"{where}.lora.dropout: tokens are scored as they were drawn here; set it to 0")
        if not any(source.get("weight", 1.0) for source in values["reward"]["sources"].values()):
            raise UserError(f"{where}.reward.sources: name at least one model, task or function that rewards answers")
        if both := set(values["reward"]["sources"]) & set(values["judges"]):
            raise UserError(f"{where}.judges: {', '.join(sorted(both))} is a name of {where}.reward.sources too")
        sources = [*values["reward"]["sources"], *values["judges"], *(["cost"] if "cost" in values else [])]
        heldout = watch.heldout_names(sources, ["*"] * 2) if values["data"]["heldout"] else []
        further = [f"eval/{name}/*" for name in values["evals"]]
        limits = watch.Limits(**values["watch"])
        watch.check_names(limits, f"{where}.watch", [*heldout, *further])


class Critic:
    """`config.critic`."""

    shared: bool
    init_from: Path | None
    lr: Annotated[float, Range(least=0, most=100)]
    first_steps: Whole

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        if values["shared"] and values["init_from"] is not None:
            raise UserError(
                f"{where}: one that is a head on the policy (shared) starts from the policy: init_from=None"
            )


class Text:
    """`config.ptx`."""

    coef: NotNegative
    mixture: dict[str, Source]
    batch_size: Rows
    seq_len: RowLength
    packing: Packing
    cache_dir: Path

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        if bool(values["coef"]) != bool(len(values["mixture"])):
            raise UserError(f"{where}: give both a coef above 0 and a mixture of text, or neither")


class Cost:
    """`config.cost`."""

    source: Scorer | None
    threshold: Annotated[Finite, Only("source", default=0.0)]
    first: Annotated[NotNegative, Only("source", default=1.0)]
    lr: Annotated[NotNegative, Only("source", default=0.1)]
    most: Annotated[Positive, Only("source", default=10.0)]

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        first, most = values["first"], values["most"]
        if values["source"] is not None and first > most:
            raise UserError(f"{where}.first = {shown(first)}: give at most {where}.most, {shown(most)}")


class PPO(Answers):
    """A config of PPO."""

    kl: ppo.Penalty
    ppo: ppo.PPOSettings
    critic: Critic
    ptx: Text
    cost: Cost

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        Answers.check(where, values)
        kl, answers = values["kl"], values["data"]["batch_size"] * values["rollout"]["n"]
        if kl["controller"] == "adaptive" and answers >= 5 * kl["horizon"]:
            raise UserError(
                f"{where}.kl.horizon = {shown(kl['horizon'])}: with {answers} answers a step the coefficient could "
                f"fall below 0; give more than {answers / 5:g}"
            )


def _check_groups(where: str, values: Mapping[str, Any]) -> None:
    Answers.check(where, values)
    if values["rollout"]["n"] < 2:
        raise UserError(f"{where}.rollout.n = 1: answers are compared with others to their prompt; give 2 or more")


class GRPO(Answers):
    """A config of GRPO and its relatives."""

    grpo: grpo.GRPOSettings

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        _check_groups(where, values)
        overlong, most = values["grpo"]["overlong"], values["rollout"]["max_tokens"]
        if overlong > most:
            raise UserError(f"{where}.grpo.overlong = {overlong}: give at most {where}.rollout.max_tokens, {most}")


class RAFT(Answers):
    """A config of RAFT."""

    raft: raft.RAFTSettings
    check = _check_groups
