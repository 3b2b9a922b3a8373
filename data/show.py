"""Renders packed rows for people to read: every token with its segment, its position, and whether it is trained on."""

from collections.abc import Mapping

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from .tokenizer import Tokenizer

SEGMENT_COLOURS = ("cyan", "yellow", "green", "magenta", "blue")
# Runs of trained tokens are bold and in brackets; the brackets are for output without colour.
OPEN, CLOSE = "⟦", "⟧"
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
LEGEND = (
    f"a paragraph per segment   {OPEN}bold{CLOSE} trained on   every other token underlined   "
    "⏎ newline   ⇥ tab   <0xE4> part of a character"
)


def render_rows(batch: Mapping[str, np.ndarray], tokenizer: Tokenizer, *, positions: bool = False) -> RenderableType:
    """A batch of packed rows for printing: a legend, then the counts of each row and its segments in colour.

    A token is trained on if the loss mask is positive where it is the target, which is one position before it. The
    target of a segment's last token is shown after an arrow if it is trained on; its text continues in another row.

    Args:
        batch: `tokens`, `targets`, `loss_mask`, `segment_ids` and `positions`, each [B, T]; segment 0 is padding.
        tokenizer: the tokenizer that made the tokens.
        positions: whether to write each token's position behind it, as a subscript.
    """
    rows = [{name: np.asarray(values)[b] for name, values in batch.items()} for b in range(len(batch["tokens"]))]
    parts = [Text(LEGEND, style="dim")]
    for b, row in enumerate(rows):
        parts += [Text(), _counts(b, row)]
        segments = row["segment_ids"]
        for segment in np.unique(segments[segments > 0]):
            parts.append(_segment(row, segments == segment, segment, tokenizer, positions))
    return Group(*parts)


def _counts(b: int, row: Mapping[str, np.ndarray]) -> Text:
    segments = row["segment_ids"]
    count = {
        "tokens": (segments > 0).sum(),
        "trained": (row["loss_mask"] > 0).sum(),
        "padding": (segments == 0).sum(),
        "segments": len(np.unique(segments[segments > 0])),
    }
    return Text(f"row {b}: " + ", ".join(f"{n} {name}" for name, n in count.items()), style="bold")


def _segment(
    row: Mapping[str, np.ndarray], where: np.ndarray, segment: int, tokenizer: Tokenizer, positions: bool
) -> Text:
    """The text of one segment: its number, then its tokens; trained tokens are bold and in brackets.

    Args:
        row: the arrays of the row, each [T].
        where: bool [T], true at the segment's positions.
        segment: the number of the segment, from 1.
        tokenizer: the tokenizer that made the tokens.
        positions: whether to write each token's position behind it.
    """
    tokens, numbers = row["tokens"][where], row["positions"][where]
    is_target = row["loss_mask"][where] > 0  # whether the token after each position is trained on
    trained = np.append(False, is_target[:-1])
    colour = SEGMENT_COLOURS[(segment - 1) % len(SEGMENT_COLOURS)]
    text = Text().append(f"{segment}: ", "dim")
    for k, token in enumerate(tokens):
        if trained[k] and not trained[k - 1]:
            text.append(OPEN, colour)
        style = [colour, "bold reverse"] if trained[k] else [colour]
        text.append(_readable(token, tokenizer), " ".join([*style, "underline"] if k % 2 else style))
        if positions:
            text.append(str(numbers[k]).translate(_SUBSCRIPTS), "dim")
        if trained[k] and not trained[k + 1 : k + 2].any():
            text.append(CLOSE, colour)
    if is_target[-1]:
        text.append(f"→{OPEN}{_readable(row['targets'][where][-1], tokenizer)}{CLOSE}", f"bold {colour}")
    return text


def _readable(token: int, tokenizer: Tokenizer) -> str:
    """The text of a token, with control characters and line breaks made visible."""
    return "".join(_visible(character) for character in tokenizer.piece(token))


def _visible(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥"
    if character.isprintable():
        return character
    return "".join(f"<0x{byte:02X}>" for byte in character.encode())
