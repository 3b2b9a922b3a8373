"""Trains a SentencePiece tokenizer with LLaMA's settings (Touvron et al. 2023, section 2.1)."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece
from etils import epath

from ..errors import UserError
from .checksums import write_whole
from .tokenizer import SENTENCEPIECE_FILE, Tokenizer

# SentencePiece skips lines longer than `max_sentence_length` bytes (4192); 1,000 characters are at most 4,000 bytes.
_LONGEST_LINE = 1000
# At most _LONGEST_LINE characters, up to the last space among them if there is one.
_LINE_PART = re.compile(rf".{{1,{_LONGEST_LINE}}}(?= |$)|.{{1,{_LONGEST_LINE}}}", re.DOTALL)

LLAMA_SETTINGS = dict(
    model_type="bpe",
    byte_fallback=True,  # a character outside the vocabulary is spelled in bytes, never lost
    split_digits=True,
    normalization_rule_name="identity",
    add_dummy_prefix=True,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    max_sentencepiece_length=16,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
)


def train_sentencepiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    output_dir: str | epath.Path,
    special_tokens: Iterable[str] = (),
    character_coverage: float = 0.99995,
) -> Tokenizer:
    """Trains a byte-pair encoding, writes it to `output_dir/tokenizer.model` and returns the tokenizer.

    The same texts in the same order give the same file, byte for byte. All lines are held in memory; of a large corpus,
    give a sample. As in LLaMA's model, a line break is the byte token `<0x0A>`.

    Args:
        texts: documents of any length. They are cut at line breaks, and very long lines at spaces.
        vocab_size: number of ids, including SentencePiece's three, the 256 bytes and `special_tokens`.
        output_dir: folder for the model file; it is created.
        special_tokens: spellings of further control tokens, e.g. "<|im_end|>"; text never becomes a control token.
        character_coverage: share of the text's characters that get an id of their own; the rest is spelled in bytes.

    Raises:
        UserError: there is no text, or it has too many characters or too few words for `vocab_size`.
        Exception: any error that `texts` raises.
    """
    if not 0 < character_coverage <= 1:
        raise UserError(f"character_coverage is {character_coverage}: give a share above 0 and at most 1")
    model = io.BytesIO()
    raised = []

    def lines():
        try:
            yield from _lines(texts)
        except BaseException as error:  # KeyboardInterrupt too
            raised.append(error)  # SentencePiece would only quote it in an error of its own
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            vocab_size=vocab_size,
            control_symbols=list(special_tokens),
            character_coverage=character_coverage,
            minloglevel=2,  # errors only, which are raised anyway
            **LLAMA_SETTINGS,
        )
    except RuntimeError as error:
        raise (raised[0] if raised else UserError(_explain(str(error), vocab_size))) from None
    output_dir = epath.Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / SENTENCEPIECE_FILE
    write_whole(path, model.getvalue())
    return Tokenizer.load(path)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The lines of the texts, cut to at most _LONGEST_LINE characters."""
    for text in texts:
        for line in text.split("\n"):
            yield from _LINE_PART.findall(line)


def _explain(error: str, vocab_size: int) -> str:
    """SentencePiece's error message in the words of this function's arguments."""
    if too_high := re.search(r"Vocabulary size too high .*<= (\d+)", error):
        return f"a vocabulary of {vocab_size} is too large for this text: give more text, or at most {too_high[1]}"
    if too_low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (
            f"a vocabulary of {vocab_size} is too small for the characters of this text: give at least {too_low[1]}, "
            "or a lower character_coverage"
        )
    if "sentences_.empty()" in error:
        return "there is no text to train a tokenizer on: give a source with text"
    return f"SentencePiece could not train a tokenizer: {error}"
