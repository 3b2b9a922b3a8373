"""What records say about their own answers: whether an answer is good, and which turns are trained on.

label, kto_tag      true or false, of the last answer of a record
score, rating       0 or less calls the answer bad; scales differ, so more than 0 says nothing
train, training,    of one turn: 1 or true trains it, 0 or false leaves it out of the loss
trainable, loss,
loss_mask, weight
weight              of a record: 1 or 0, for all its turns; and so a `train` or `training` that is false
"""

from collections.abc import Mapping
from decimal import Decimal

from .values import shown

VERDICTS = ("kto_tag", "label")
SCORES = ("score", "rating")
SWITCHES = ("train", "training", "trainable", "loss", "loss_mask", "weight")
_YES = ("true", "yes", "good", "desirable", "chosen", "1")
_NO = ("false", "no", "bad", "undesirable", "rejected", "0")


def verdict(raw: Mapping, *, required: bool = False) -> bool | None:
    """Whether a record calls its answer good; None where it does not say.

    A `label` that is neither true nor false is a class or a reference answer, and says nothing; a `kto_tag`, and with
    `required` a `label` as well, has to be one. ValueError where it is not, or where two fields disagree.
    """
    found = {}
    for field in VERDICTS:
        if field in raw:
            value = truth(raw[field])
            if value is None and (required or field == "kto_tag"):
                raise ValueError(f"{field} is {shown(raw[field])}, not true or false")
            found |= {} if value is None else {field: value}
    found |= {field: False for field in SCORES if field in raw and calls_bad(raw[field])}
    if len(set(found.values())) > 1:
        raise ValueError(f"{' and '.join(found)} disagree about the answer")
    return next(iter(found.values()), None)


def truth(value) -> bool | None:
    """True or False for a boolean, 0, 1, or a word for one of them, spelled or not; None for anything else."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in (*_YES, *_NO):
            return word in _YES
        value = _number(word)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None


def _number(text: str) -> float | None:
    """The number that a text spells; None where it spells none."""
    try:
        return float(text)
    except ValueError:
        return None


def calls_bad(value) -> bool:
    """Whether a score or rating is false or 0 or less, as a number or spelled."""
    if isinstance(value, str):
        number = _number(value)
        return truth(value) is False if number is None else number <= 0
    return isinstance(value, bool | int | float | Decimal) and value <= 0


def is_used(raw: Mapping) -> bool:
    """Whether a record is to be learnt from, as its own `weight`, `train` or `training` says. ValueError for a weight
    that is a number other than 0 and 1."""
    weight = raw.get("weight")
    if isinstance(weight, str) and truth(weight) is None:
        weight = _number(weight)
    if isinstance(weight, int | float | Decimal) and weight not in (0, 1):
        raise ValueError(f"weight is {shown(raw['weight'])}: a record is trained on (1) or not at all (0)")
    return all(truth(raw.get(field)) is not False for field in ("weight", "train", "training"))


def is_trained(row: Mapping, role: str, where: str) -> bool | None:
    """Whether the switches of a turn train it; None where it has none.

    ValueError for a weight between 0 and 1 or above, for switches that disagree, and for a turn of somebody else than
    the assistant that is to be trained. (A weight of 1 there is what OpenAI's files say of every turn.)
    """
    found = {}
    for field in SWITCHES:
        if field in row and row[field] != "":  # a column of text holds "" for a turn without a switch
            value = truth(row[field])
            if value is None:
                raise ValueError(f"{where} has {field} {shown(row[field])}: a turn is trained on (1) or not at all (0)")
            if value and role != "assistant" and field != "weight":
                raise ValueError(f"{where} has {field} {shown(row[field])}, but only the assistant's turns are trained")
            found[field] = value
    if len(set(found.values())) > 1:
        raise ValueError(f"{where}: {' and '.join(found)} disagree about whether the turn is trained")
    for field in (*VERDICTS, *SCORES):
        if field in row and (calls_bad(row[field]) or truth(row[field]) is False) and found.get("train") is not False:
            raise ValueError(f"{where} has {field} {shown(row[field])}: give a turn not to be learnt `train`: false")
    if row.get("train_detail"):
        raise ValueError(f"{where} has train_detail: a turn is trained as a whole or not at all")
    return next(iter(found.values()), None)
