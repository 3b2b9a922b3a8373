"""Reads and writes a model's recommended sampling settings, and the ids and strings that end its answers.

Hugging Face's folders have them in `generation_config.json` and, older ones, in `config.json`. GGUF files have them in
their metadata and in the spelling of tokens. A wrong value is left out with a warning; the model is still loaded.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from ...model.sampling import Sampling
from ...model.stopping import MOST_BYTES
from .headers import exists_or_broken_link, read_json
from .huggingface import CONFIG

FILE = "generation_config.json"
MOST_IDS = 256

HUGGING_FACE_FIELDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
GGUF_FIELDS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
}
"""{name in the other format: field of `Sampling`}. GGUF's repetition penalty is left out: it only counts the last
tokens, unlike ours."""

GGUF_IDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
END_SPELLINGS = frozenset(
    (
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>"),
        *("<end_of_turn>", "<turn|>", "<|tool_response>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>"),
        *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|fim_pad|>", "<fim-pad>", "<fim_pad>"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<|file_sep|>"),
    )
)
"""Tokens that end an answer in llama.cpp by their spelling alone (`llama-vocab.cpp`, special_eog_ids)."""


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """A model's recommended settings, each used where a caller does not give that setting.

    All fields but the first two are fields of `Sampling`; None means no recommendation.
    """

    stop_ids: tuple[int, ...] = ()
    """The ids that end an answer."""
    stop: tuple[str, ...] = ()
    """The strings that end an answer."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None

    def sampling(self) -> dict[str, float | int]:
        """The recommended fields of `Sampling`, without those that are None."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in HUGGING_FACE_FIELDS.values() if fields[name] is not None}

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them, without empty ones."""
        said = {name: list(ends) for name, ends in (("stop_ids", self.stop_ids), ("stop", self.stop)) if ends}
        return said | self.sampling()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "GenerationDefaults":
        """The settings that `to_dict` returned."""
        ends = {name: tuple(fields.get(name, ())) for name in ("stop_ids", "stop")}
        return cls(**(dict(fields) | ends))


def read_folder(path: epath.PathLike, vocab_size: int) -> GenerationDefaults:
    """Reads the settings of a folder in Hugging Face's format.

    As in transformers, `do_sample: false` means greedy decoding, and `eos_token_id` of `config.json` counts if
    `generation_config.json` has none. As in vLLM, transformers' defaults for missing fields (such as top_k 50) do not.

    Args:
      path: the folder.
      vocab_size: rows of the embedding.
    """
    path = epath.Path(path)
    where, fields = str(path / FILE), {}
    if exists_or_broken_link(path / FILE):
        try:
            fields = read_json(path / FILE)
        except ValueError as error:
            warnings.warn(f"{error}; its sampling settings are not used", stacklevel=2)
    ends, of = fields.get("eos_token_id"), where
    if ends is None and (path / CONFIG).exists():
        ends, of = read_json(path / CONFIG).get("eos_token_id"), str(path / CONFIG)
    said = {ours: fields.get(theirs) for theirs, ours in HUGGING_FACE_FIELDS.items()}
    if fields.get("do_sample") is False:
        said["temperature"] = 0.0
    elif fields.get("do_sample") is True and said["temperature"] is None:
        said["temperature"] = 1.0
    return GenerationDefaults(
        stop_ids=_ids(ends, vocab_size, f"{of}: eos_token_id"),
        stop=_strings(fields.get("stop_strings"), f"{where}: stop_strings"),
        **_sampling(said, where),
    )


def read_gguf(fields: Mapping[str, Any], where: str, vocab_size: int) -> GenerationDefaults:
    """Reads the settings of a GGUF file: the ids that end an answer in llama.cpp, and the sampling settings.

    Args:
      fields: metadata by key.
      where: name of the file, for warnings.
      vocab_size: rows of the embedding.
    """
    named = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in GGUF_IDS]
    tokens = fields.get("tokenizer.ggml.tokens")
    spelled = [i for i, token in enumerate(tokens) if token in END_SPELLINGS] if isinstance(tokens, list) else []
    said = {ours: fields.get(theirs) for theirs, ours in GGUF_FIELDS.items()}
    return GenerationDefaults(
        stop_ids=_ids([i for i in (*named, *spelled) if i is not None], vocab_size, f"{where}: the id of an end"),
        **_sampling(said, where),
    )


def _sampling(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `Sampling` with valid values; a warning names each of the others.

    A top_k of -1 means 0, the whole vocabulary, as in vLLM and llama.cpp.
    """
    kept = {}
    for name, value in said.items():
        if value is None:
            continue
        if name == "top_k" and value == -1:
            value = 0
        try:
            Sampling(**{name: value})
        except ValueError as error:
            warnings.warn(f"{where}: {error}; it is not used", stacklevel=3)
        else:
            kept[name] = value
    return kept


def _ids(given: Any, vocab_size: int, where: str) -> tuple[int, ...]:
    """One id or a list of ids as a sorted tuple; values that are no ids of the network are left out with a warning."""
    given = [] if given is None else given if isinstance(given, list) else [given]
    ids = {i for i in given if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size}
    wrong = [i for i in given if not isinstance(i, int) or i not in ids]
    if len(ids) > MOST_IDS:
        wrong, ids = sorted(ids), set()
    if wrong:
        shown = ", ".join(repr(i)[:40] for i in wrong[:3])
        warnings.warn(
            f"{where}: {shown}{', ...' if wrong[3:] else ''} of {len(given)} given are not used: an id is a number "
            f"from 0 to {vocab_size - 1}, and at most {MOST_IDS} end an answer",
            stacklevel=3,
        )
    return tuple(sorted(ids))


def _strings(given: Any, where: str) -> tuple[str, ...]:
    given = [] if given is None else given if isinstance(given, list) else [given]
    try:
        if all(given) and len("".join(given).encode()) <= MOST_BYTES:
            return tuple(given)
    except (TypeError, UnicodeEncodeError):
        pass
    warnings.warn(f"{where}: {str(given)[:60]} is not used: give strings of at most {MOST_BYTES} bytes", stacklevel=3)
    return ()


def write_config(defaults: GenerationDefaults, bos_id: int | None, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The content of a `generation_config.json`.

    Args:
      defaults: the recommended settings.
      bos_id: the id of bos; None if the tokenizer has none.
      stop_ids: all ids that end an answer, including those of the tokenizer and the chat template.
    """
    said = defaults.sampling()
    fields = {theirs: said[ours] for theirs, ours in HUGGING_FACE_FIELDS.items() if ours in said}
    if said.get("temperature") == 0:  # transformers refuses to save sampling settings with greedy decoding
        fields = {name: fields[name] for name in ("repetition_penalty", "max_new_tokens") if name in fields}
        fields["do_sample"] = False
    elif said.keys() - {"repetition_penalty", "max_tokens"}:
        fields["do_sample"] = True
    if defaults.stop:
        fields["stop_strings"] = list(defaults.stop)
    return {"bos_token_id": bos_id, "eos_token_id": one_or_many(stop_ids)} | fields


def one_or_many(ids: Sequence[int]) -> int | list[int]:
    """Ids in the form of Hugging Face's files: a number for one id, a list for several."""
    return list(ids) if ids[1:] else ids[0]


def gguf_fields(defaults: GenerationDefaults, eos_id: int, turn_ends: Iterable[int]) -> dict[str, Any]:
    """The metadata of a GGUF file for the sampling settings and the ids that end an answer besides the end of text.

    The format has room for two such ids; llama.cpp knows others by their spelling.

    Args:
      defaults: the recommended settings.
      eos_id: the id of the end of text.
      turn_ends: the ids with which the chat template ends a turn; they come first.
    """
    ends = [i for i in dict.fromkeys((*turn_ends, *defaults.stop_ids)) if i != eos_id]
    names = (f"tokenizer.ggml.{name}_token_id" for name in ("eot", "eom"))
    said = defaults.sampling()
    return dict(zip(names, ends, strict=False)) | {
        theirs: said[ours] for theirs, ours in GGUF_FIELDS.items() if ours in said
    }
