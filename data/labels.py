"""Reads labels of answers, and switches that say which turns are trained on.

label, kto_tag      of a record: true or false for its last answer
score, rating       of a record: 0 or less means a bad answer; scales differ, so more than 0 means nothing
train, training,    of a turn: 1 or true trains on it, 0 or false leaves it out of the loss
trainable, loss,
loss_mask, weight
weight, train,      of a record: 1 or 0 for all its turns
training
"""

from collections.abc import Mapping
from decimal import Decimal

from ..errors import shown

LABEL_FIELDS = ("kto_tag", "label")
SCORE_FIELDS = ("score", "rating")
TRAIN_FIELDS = ("train", "training", "trainable", "loss", "loss_mask", "weight")
_YES = ("true", "yes", "good", "desirable", "chosen", "1")
_NO = ("false", "no", "bad", "undesirable", "rejected", "0")


def answer_label(raw: Mapping, *, required: bool = False) -> bool | None:
    """Whether a record labels its answer good; None if it has no label.

    A `label` that is neither true nor false is a class or a reference answer, and is no label here.

    Args:
      raw: the raw record.
      required: whether a `label` must be true or false. A `kto_tag` always must be.

    Raises:
      ValueError: a field that must be true or false is not, or two fields disagree.
    """
    found = {}
    for field in LABEL_FIELDS:
        if field in raw:
            value = parse_boolean(raw[field])
            if value is None and (required or field == "kto_tag"):
                raise ValueError(f"{field} is {shown(raw[field])}, not true or false")
            found |= {} if value is None else {field: value}
    found |= {field: False for field in SCORE_FIELDS if field in raw and is_bad_score(raw[field])}
    if len(set(found.values())) > 1:
        raise ValueError(f"{' and '.join(found)} disagree about the answer: give only one of them")
    return next(iter(found.values()), None)


def parse_boolean(value) -> bool | None:
    """The truth value of a boolean, of 0 or 1, or of a word such as "yes" or "bad"; None for any other value."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in (*_YES, *_NO):
            return word in _YES
        value = _number(word)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None


def _number(text: str) -> float | None:
    """The number that a text spells; None if it spells none."""
    try:
        return float(text)
    except ValueError:
        return None


def is_bad_score(value) -> bool:
    """Whether a score or rating is false, or a number that is 0 or less; either may be spelled as text."""
    if isinstance(value, str):
        number = _number(value)
        return parse_boolean(value) is False if number is None else number <= 0
    return isinstance(value, bool | int | float | Decimal) and value <= 0


def is_trained_record(raw: Mapping) -> bool:
    """Whether a record is trained on, by its own fields `weight`, `train` and `training`.

    Raises ValueError for a weight that is a number other than 0 and 1.
    """
    weight = raw.get("weight")
    if isinstance(weight, str) and parse_boolean(weight) is None:
        weight = _number(weight)
    if isinstance(weight, int | float | Decimal) and weight not in (0, 1):
        raise ValueError(f"weight is {shown(raw['weight'])}: give 1 to train on the record, or 0")
    return all(parse_boolean(raw.get(field)) is not False for field in ("weight", "train", "training"))


def is_trained_turn(row: Mapping, role: str, where: str) -> bool | None:
    """Whether the fields TRAIN_FIELDS of a turn train on it; None if it has none of them.

    A `weight` of 1 is allowed on every turn, since OpenAI's files have it there.

    Args:
      row: the raw message.
      role: its role.
      where: names the message in errors.

    Raises:
      ValueError: a weight other than 0 and 1, fields that disagree, or a turn of another role that is to be trained on.
    """
    found = {}
    for field in TRAIN_FIELDS:
        if field in row and row[field] != "":  # a text column of a table holds "" for a missing value
            value = parse_boolean(row[field])
            if value is None:
                raise ValueError(f"{where} has {field} {shown(row[field])}: give 1 to train on the turn, or 0")
            if value and role != "assistant" and field != "weight":
                raise ValueError(f"{where} has {field} {shown(row[field])}: only the assistant's turns are trained")
            found[field] = value
    if len(set(found.values())) > 1:
        raise ValueError(f"{where}: {' and '.join(found)} disagree: give only one of them")
    for field in (*LABEL_FIELDS, *SCORE_FIELDS):
        if (
            field in row
            and (is_bad_score(row[field]) or parse_boolean(row[field]) is False)
            and found.get("train") is not False
        ):
            problem = f"{where} has {field} {shown(row[field])}, which is for records"
            raise ValueError(f"{problem}: set train to false to leave the turn out of the loss")
    if row.get("train_detail"):
        raise ValueError(f"{where} has train_detail, which is not supported: a turn is trained on whole or not at all")
    return next(iter(found.values()), None)
