"""Scores of an answer as text: pure functions of prediction and gold, each in [0, 1].

squad   normalisation, exact match and F1 of the official SQuAD 2.0 script (Rajpurkar et al. 2018, arXiv:1806.03822):
        lower case, no punctuation, no articles, single spaces; the best over several gold answers counts; where one of
        the two is no answer, both scores are 1 if the other is none as well, else 0
number  the last number of the answer (after `####` where there is one), as GSM8K is scored
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

REFUSALS = ("Cannot find answer", "No answer", "Unanswerable")
"""Texts that say there is no answer."""

Gold = str | Sequence[str] | None

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")


def normalise(text: str) -> str:
    """As the official SQuAD script does."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answers(gold: Gold) -> list[str]:
    """The gold answers; [""] where there is none."""
    if gold is None:
        return [""]
    given = [gold] if isinstance(gold, str) else [str(text) for text in gold]
    return [text for text in given if normalise(text)] or [""]


def is_refusal(text: str, refusals: Sequence[str] = REFUSALS) -> bool:
    """The whole answer says that there is none."""
    return normalise(text) in {"", *(normalise(refusal) for refusal in refusals)}


def exact_match(prediction: str, gold: Gold, refusals: Sequence[str] = REFUSALS) -> float:
    return _best(lambda a, b: float(a == b), prediction, gold, refusals)


def f1(prediction: str, gold: Gold, refusals: Sequence[str] = REFUSALS) -> float:
    """Of the two bags of words."""
    return _best(_word_f1, prediction, gold, refusals)


def _best(score: Callable[[str, str], float], prediction: str, gold: Gold, refusals: Sequence[str]) -> float:
    def said(text: str) -> str:
        return "" if is_refusal(text, refusals) else normalise(text)

    return max(score(said(prediction), said(answer)) for answer in answers(gold))


def _word_f1(prediction: str, gold: str) -> float:
    found, wanted = prediction.split(), gold.split()
    if not found or not wanted:
        return float(found == wanted)
    same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * same / (len(found) + len(wanted))


def contains(prediction: str, gold: Gold) -> float:
    """1 if a gold answer stands in the prediction as whole words, both normalised."""
    padded = f" {normalise(prediction)} "
    return float(any(f" {normalise(answer)} " in padded for answer in answers(gold) if normalise(answer)))


def last_number(text: str) -> float | None:
    """The last number, of what follows the last `####` where that holds one."""
    for part in (text.rpartition("####")[2], text):
        if found := _NUMBER.findall(part):
            return float(found[-1].replace(",", ""))
    return None


def number(prediction: str, gold: Gold | float, tolerance: float = 1e-6) -> float:
    """1 if the answer's number equals the gold one, relative to its size."""
    wanted = float(gold) if isinstance(gold, int | float) else last_number(answers(gold)[0])
    found = last_number(prediction)
    if wanted is None or found is None:
        return 0.0
    return float(abs(found - wanted) <= tolerance * max(1.0, abs(wanted)))


def label(prediction: str, gold: Gold, labels: Sequence[str] = ()) -> float:
    """1 if the answer names the gold label: the first of `labels` that stands in it, the longer where two begin at
    one place; without `labels` the whole answer."""
    wanted = {normalise(answer) for answer in answers(gold)}
    text = normalise(prediction)
    if not labels:
        return float(text in wanted)
    padded = f" {text} "
    places = [(padded.find(f" {normalise(name)} "), -len(name), normalise(name)) for name in labels]
    found = sorted(place for place in places if place[0] >= 0)
    return float(bool(found) and found[0][2] in wanted)
