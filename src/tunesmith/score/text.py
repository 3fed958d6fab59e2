"""Scores of an answer as text: pure functions of prediction and gold, each in [0, 1].

squad   normalisation, exact match and F1 of the official SQuAD 2.0 script (Rajpurkar et al. 2018, arXiv:1806.03822):
        lower case, no punctuation, no articles, single spaces; the best over several gold answers counts; where one of
        the two is no answer, both scores are 1 if the other is none as well, else 0
number  the last number of the answer (after `####` where there is one), as GSM8K is scored
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.errors import DataError

REFUSALS = ("Cannot find answer", "No answer", "Unanswerable")
"""Texts that say there is no answer."""

Gold = Any
"""One right answer or several: text or numbers; or as SQuAD has them, {"text": […], …} or [{"text": …}, …]. None or
nothing in a list: there is no answer."""

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A sign belongs to the number unless it stands behind another one or a word: 10-3, pages 10-12.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-+\u2212]\$?)?(?P<size>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
)


def normalise(text: str) -> str:
    """As the official SQuAD script does."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answers(gold: Gold) -> list[str]:
    """The gold answers; [""] where there is none."""
    return [text for text in _texts(gold) if normalise(text)] or [""]


def _texts(gold: Gold) -> list[str]:
    if gold is None:
        return []
    if isinstance(gold, str | int | float):
        return [str(gold)]
    if isinstance(gold, Mapping) and "text" in gold:
        return _texts(gold["text"])
    if isinstance(gold, list | tuple):
        return [text for item in gold for text in _texts(item)]
    raise DataError(
        "the right answer is neither text nor a list of texts",
        found=f"{type(gold).__name__} {str(gold)[:80]}",
        fix="name another column, or hold the answer as text",
    )


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
        if found := list(_NUMBER.finditer(part)):
            size = float(found[-1]["size"].replace(",", ""))
            return -size if (found[-1]["sign"] or "+")[0] in "-\u2212" else size
    return None


def number(prediction: str, gold: Gold, tolerance: float = 1e-6) -> float:
    """1 if the answer's number equals the gold one, relative to its size."""
    wanted, found = _wanted_number(gold), last_number(prediction)
    return float(found is not None and abs(found - wanted) <= tolerance * max(1.0, abs(wanted)))


def _wanted_number(gold: Gold) -> float:
    try:
        wanted = float(gold) if isinstance(gold, int | float) else last_number(answers(gold)[0])
    except OverflowError:
        wanted = None
    if wanted is None or not math.isfinite(wanted):
        what, fix = "the right answer holds no number to compare with", "mend it, or take another score (exact)"
        raise DataError(what, found=str(gold)[:80], fix=fix)
    return wanted


def label(prediction: str, gold: Gold, labels: Sequence[str] = ()) -> float:
    """1 if the answer names the gold label: the first of `labels` that stands in it, the longer where two begin at
    one place; without `labels` the whole answer. Articles count, for a label may be called A."""
    wanted = {_label_text(answer) for answer in _texts(gold)}
    text = _label_text(prediction)
    if not labels:
        return float(text in wanted)
    names = [_label_text(str(name)) for name in labels]
    if not wanted & set(names):
        raise DataError("the right answer is none of the labels", found=str(gold)[:80], expected=", ".join(names))
    padded, raw = f" {text} ", f" {' '.join(prediction.lower().split())} "
    places = [((padded if name[:1].isalnum() else raw).find(f" {name} "), -len(name), name) for name in names]
    found = sorted(place for place in places if place[0] >= 0)
    return float(bool(found) and found[0][2] in wanted)


def _label_text(text: str) -> str:
    """Lower case without punctuation, unless there is nothing else."""
    return " ".join(text.lower().translate(_PUNCTUATION).split()) or text.strip().lower()
