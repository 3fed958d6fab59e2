"""What probabilities decide, and how good they are: accuracy, macro-F1, area under the ROC curve, calibration, the
confusion of classes.

Averages are scikit-learn's; a class that no row has is left out of them, and a figure that cannot be is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence lies in one tenth: their mean confidence, the share that is right, how many."""

    confidence: float
    right: float
    count: int


def decided(
    probabilities: np.ndarray, several: bool, thresholds: Sequence[float] = (), *, ordered: bool = False
) -> np.ndarray:
    """[n, K] probabilities -> [n, K] bool: the likeliest class; of several labels, all that reach their threshold; of
    ordered classes the median: as many classes stand below it as there are k with P(y > k) above a half, which is how
    CORN decides (arXiv:2111.08851).

    Of two classes one threshold is of the second.
    """
    if several:
        return np.asarray(probabilities >= (np.array(thresholds) if len(thresholds) else 0.5))
    if len(thresholds):
        second = probabilities[:, 1] >= thresholds[0]
        return np.stack([~second, second], axis=1)
    if ordered:
        above = probabilities[:, ::-1].cumsum(1)[:, -2::-1]  # P(y > k)
        place = (above > 0.5).sum(1)
    else:
        place = probabilities.argmax(1)
    return np.asarray(np.eye(probabilities.shape[1], dtype=bool)[place])


def measured(probabilities: np.ndarray, wanted: np.ndarray, several: bool, ordered: bool = False) -> dict[str, float]:
    """Figures by name. probabilities [n, K]; wanted [n, K] 0 or 1."""
    said = decided(probabilities, several, ordered=ordered)
    return {
        "accuracy": float((said == wanted).all(1).mean()),
        **_figures(probabilities, wanted, said, several, ordered),
    }


def at_thresholds(
    probabilities: np.ndarray, wanted: np.ndarray, several: bool, thresholds: Sequence[float]
) -> dict[str, float]:
    """Accuracy and macro-F1 where a label counts from its threshold on."""
    said, truth = decided(probabilities, several, thresholds), wanted.astype(bool)
    macro = _macro_f1(truth, said)
    return {"accuracy at the thresholds": float((said == truth).all(1).mean()), "macro_f1 at the thresholds": macro}


def _macro_f1(truth: np.ndarray, said: np.ndarray) -> float:
    """The mean over labels that any row has."""
    from sklearn.metrics import f1_score

    known = np.flatnonzero(truth.any(0))
    each = [f1_score(truth[:, k], said[:, k], zero_division=0) for k in known]
    return float(np.mean(each)) if each else 0.0


def _figures(
    probabilities: np.ndarray, wanted: np.ndarray, said: np.ndarray, several: bool, ordered: bool
) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    known = wanted.any(0)
    truth = wanted.astype(bool)
    figures = {"macro_f1": _macro_f1(truth, said)}
    apart = np.asarray(known & ~truth.all(0))
    if apart.any():
        if probabilities.shape[1] == 2 and not several:
            apart = np.array([False, bool(apart[1])])
        if apart.any():
            figures["auc"] = float(roc_auc_score(truth[:, apart], probabilities[:, apart], average="macro"))
    figures["ece"] = calibration_error(reliability(probabilities, wanted, several, ordered))
    if ordered:
        places = np.arange(probabilities.shape[1])
        figures["mean_error"] = float(np.abs(said @ places - wanted @ places).mean())
    return figures


def reliability(probabilities: np.ndarray, wanted: np.ndarray, several: bool, ordered: bool = False) -> list[Bin]:
    """Tenths of confidence that any row is in. Of one class a row: how sure it is of the one that is decided for; of
    several labels: each label of each row, of the side that it takes."""
    if several:
        says = probabilities >= 0.5
        sure = np.where(says, probabilities, 1 - probabilities).reshape(-1)
        right = (says == wanted.astype(bool)).reshape(-1)
    else:
        said = decided(probabilities, False, ordered=ordered)
        sure, right = probabilities[said], wanted[said].astype(bool)
    tenth = np.minimum((sure * BINS).astype(int), BINS - 1)
    return [
        Bin(float(sure[tenth == b].mean()), float(right[tenth == b].mean()), int((tenth == b).sum()))
        for b in range(BINS)
        if (tenth == b).any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Naeini et al. 2015): how far confidence and share of right answers lie apart."""
    total = sum(one.count for one in bins)
    return float(sum(one.count * abs(one.confidence - one.right) for one in bins) / max(total, 1))


def confusion(said: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[K, K] counts: of rows of class i, how many were said to be of class j."""
    return np.asarray(wanted.astype(int).T @ said.astype(int))


def best_thresholds(
    probabilities: np.ndarray, wanted: np.ndarray, *, both: bool = False, enough: int = 1
) -> tuple[float, ...]:
    """For each label [n, K] the threshold of the highest F1 on these rows: midway between two probabilities; the one
    nearest a half where several do. A half where nothing is better, and for a label that fewer than `enough` rows have,
    or fewer have not (`too_few`).

    `both`: of the highest mean of the F1 with the label and without it, as two classes have it: then it does not matter
    which of them is the second.
    """
    few = too_few(wanted, enough)
    return tuple(
        0.5 if few[k] else _best_threshold(probabilities[:, k], wanted[:, k].astype(bool), both)
        for k in range(wanted.shape[1])
    )


def too_few(wanted: np.ndarray, enough: int) -> np.ndarray:
    """[n, K] 0 or 1 -> [K] bool: fewer than `enough` rows have the label, or fewer have not."""
    count = wanted.sum(0)
    return np.asarray(np.minimum(count, len(wanted) - count) < enough)


def _best_threshold(probabilities: np.ndarray, truth: np.ndarray, both: bool) -> float:
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    said, hits = np.arange(1, len(ranked) + 1), np.cumsum(truth[order])
    lower = np.append(ranked[1:], 0.0)
    # a threshold stands between two different probabilities
    f1 = np.where(ranked > lower, _f1(hits, said, truth, both), -1.0)
    at_half = probabilities >= 0.5
    if _f1(truth[at_half].sum(), at_half.sum(), truth, both) >= f1.max() - 1e-12:
        return 0.5
    cuts = (ranked + lower) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(min((cuts[i] for i in best), key=lambda cut: abs(cut - 0.5)))


def _f1(hits: Any, said: Any, truth: np.ndarray, both: bool) -> Any:
    """Where `said` rows are said to have the label, `hits` of them rightly."""
    of_label = 2 * hits / (said + truth.sum())
    if not both:
        return of_label
    without, rows = (~truth).sum(), len(truth)
    return (of_label + 2 * (without - said + hits) / (rows - said + without)) / 2
