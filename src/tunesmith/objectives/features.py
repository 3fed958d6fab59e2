"""Way features: what the frozen model says of each text is computed once and kept; the head is fitted to it at once.

The head's last matrix is all that learns, so the fit is convex: scikit-learn finds its best, and no step is taken. What
it found becomes the head, as if it had been trained: saved, merged and served like any other.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tunesmith.atomic import write_file
from tunesmith.data.pack import micro_batches
from tunesmith.data.types import Example
from tunesmith.models.policy import Policy
from tunesmith.objectives.cache_keys import row_digest, weights_key

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
FOLDS = 3
MOST_ITERATIONS = 2000
CONSTANT = 1e-5
"""Spread of a feature, as a share of its mean, up to which it is rounding alone."""
LONGEST = 100.0
"""Of the column that stands in for a bias: beyond it nothing is gained, and the fit is slow."""


def features_of(
    policy: Policy,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    root: Path,
    told: Callable[[float], None] = lambda share: None,
) -> tuple[np.ndarray, float | None]:
    """What the last matrix of the head is given for each of `examples` [n, d] fp32; where it was kept already, also the
    seconds that it took then, else None."""
    rows = {row_digest(example): example for example in examples}
    names = sorted(rows)
    path = root / f"{weights_key(policy, names, max_tokens, share=False)}.safetensors"
    table, kept = _read(path, len(names))
    if table is None:
        begun = time.perf_counter()
        table = _computed(policy, [rows[name] for name in names], names, max_tokens, told)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, save({"features": table, "seconds": np.array([time.perf_counter() - begun])}))
    place = {name: index for index, name in enumerate(names)}
    return table[[place[row_digest(example)] for example in examples]], kept


def _computed(
    policy: Policy,
    rows: Sequence[Example],
    names: Sequence[bytes],
    max_tokens: int,
    told: Callable[[float], None],
) -> np.ndarray:
    place = {name: index for index, name in enumerate(names)}
    made: dict[int, np.ndarray] = {}
    batches = micro_batches(rows, max_tokens)
    total, done = sum(map(len, batches)), 0
    for batch in batches:
        with policy.answering():
            found = policy.features(batch.to(policy.device)).float().cpu().numpy()
        for leaf, one in zip(batch.leaves, found, strict=True):
            made[place[row_digest(batch.examples[leaf])]] = one
        done += len(batch)
        told(done / total)
    return np.stack([made[index] for index in range(len(names))])


def _read(path: Path, count: int) -> tuple[np.ndarray | None, float | None]:
    """The table of a file that is whole, and the seconds that it took (0 where nobody wrote them down); else None."""
    try:
        held = load(path.read_bytes())
        table: np.ndarray = held["features"]
    except (OSError, KeyError, ValueError, SafetensorError):
        return None, None
    if len(table) != count or not np.isfinite(table).all():
        return None, None
    return table, float(held["seconds"][0]) if "seconds" in held else 0.0


@dataclass(frozen=True)
class Fitted:
    weight: np.ndarray
    """[K, d]"""
    bias: np.ndarray | None
    strength: float
    notes: tuple[str, ...]


def fitted(
    features: np.ndarray,
    wanted: np.ndarray,
    weights: np.ndarray,
    *,
    several: bool,
    has_bias: bool,
    how: Literal["logistic", "svm"],
    strength: float | None,
    seed: int,
) -> Fitted:
    """The head of the lowest regularised loss. features [n, d], wanted [n, K] 0 or 1, weights [K] of the classes."""
    frame = _framed(features, has_bias)
    scaled = frame.rows
    problems = [wanted[:, k] for k in range(wanted.shape[1])] if several else [wanted.argmax(1)]
    of_rows = (lambda k, y: np.where(y > 0, weights[k], 1.0)) if several else (lambda k, y: weights[y])
    notes: list[str] = []
    if strength is None:
        strength, shown = _best_strength(problems, scaled, of_rows, has_bias, how, seed)
        notes.append(f"C {strength:g}, by cross-validation in {FOLDS} parts ({shown})")
    found = [_solved(scaled, y, of_rows(k, y), has_bias, how, strength, notes) for k, y in enumerate(problems)]
    matrix, bias = (np.concatenate([one[i] for one in found]) for i in (0, 1))
    if not several and wanted.shape[1] == 2:  # one number that parts two classes, as a number for each
        matrix, bias = np.concatenate([-matrix / 2, matrix / 2]), np.concatenate([-bias / 2, bias / 2])
    weight, bias = frame.undone(matrix, bias)
    return Fitted(weight, bias if has_bias else None, strength, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Frame:
    """Features in which the fit is well conditioned: each of spread one, and centred.

    A decoder's head has no bias to take the centring back with: there a direction of the features themselves, that of
    their means u = m / |m|, stands in for one, and its column 1 + u·z / |m| is |m| long, as it is where nothing is
    centred. So the head of the lowest loss is the same, with and without the centring.
    """

    rows: np.ndarray
    scale: np.ndarray
    means: np.ndarray
    """m [d], in units of the spread."""
    column: float | None
    """Length of the column that stands in for a bias; None where there is a bias."""

    def undone(self, matrix: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(matrix [K, ...], bias [K]) of the fit -> those of the features as they came, [K, d] and [K]."""
        if self.column is None:
            return matrix / self.scale, bias - matrix @ self.means
        matrix, along = matrix[:, :-1], matrix[:, -1:]
        length = np.linalg.norm(self.means)
        if not length:
            return matrix / self.scale, bias
        u = self.means / length
        across = matrix - (matrix @ u)[:, None] * u
        return (across + along * self.column / length * u) / self.scale, bias


def _framed(features: np.ndarray, has_bias: bool) -> _Frame:
    wide = features.astype(np.float64)
    means, scale = wide.mean(0), wide.std(0)
    constant = scale <= CONSTANT * np.abs(means)
    scale[constant | (scale == 0)] = 1.0
    rows = (wide - means) / scale
    rows[:, constant] = 0.0
    m = means / scale
    if has_bias:
        return _Frame(rows, scale, m, None)
    length = float(np.linalg.norm(m))
    if not length:
        return _Frame(np.concatenate([rows, np.zeros((len(rows), 1))], axis=1), scale, m, 0.0)
    u, column = m / length, min(length, LONGEST)
    along = rows @ u
    stands_in = column * (1 + along / length)
    return _Frame(np.concatenate([rows - along[:, None] * u, stands_in[:, None]], axis=1), scale, m, column)


def _model(has_bias: bool, how: str, strength: float) -> Any:
    if how == "svm":
        from sklearn.svm import LinearSVC

        return LinearSVC(C=strength, fit_intercept=has_bias, max_iter=MOST_ITERATIONS, random_state=0)
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, fit_intercept=has_bias, max_iter=MOST_ITERATIONS)


def _solved(
    x: np.ndarray, y: np.ndarray, row_weights: np.ndarray, has_bias: bool, how: str, strength: float, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(matrix [1 or K, d], biases) of one problem, whose rows are not all of one class."""
    model = _model(has_bias, how, strength)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(x, y, sample_weight=row_weights)
    if any("converge" in str(one.message) for one in said):
        notes.append(
            f"the fit has not converged in {MOST_ITERATIONS} iterations: a smaller objective.fit_strength does"
        )
    return model.coef_, np.broadcast_to(np.asarray(model.intercept_, dtype=float), (len(model.coef_),))


def _best_strength(
    problems: Sequence[np.ndarray], x: np.ndarray, of_rows: Any, has_bias: bool, how: str, seed: int
) -> tuple[float, str]:
    """The C of the lowest loss on rows that were left out, and what each gave."""
    from sklearn.metrics import hinge_loss, log_loss
    from sklearn.model_selection import StratifiedKFold

    losses = dict.fromkeys(STRENGTHS, 0.0)
    for k, y in enumerate(problems):
        counts = np.bincount(y.astype(int))
        if len(np.unique(y)) < 2 or counts[counts > 0].min() < FOLDS:
            continue
        for learned, left in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
            for strength in STRENGTHS:
                model = _model(has_bias, how, strength)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model.fit(x[learned], y[learned], sample_weight=of_rows(k, y)[learned])
                    if how == "svm":
                        loss = hinge_loss(y[left], model.decision_function(x[left]), labels=model.classes_)
                    else:
                        loss = log_loss(y[left], model.predict_proba(x[left]), labels=model.classes_)
                losses[strength] += loss / FOLDS
    if not any(losses.values()):
        return 1.0, f"none: a class has fewer than {FOLDS} rows"
    best = min(STRENGTHS, key=lambda strength: losses[strength])
    return best, ", ".join(f"{strength:g}: {loss:.4f}" for strength, loss in losses.items())


@torch.no_grad()
def take_over(policy: Policy, found: Fitted) -> None:
    """Make what was fitted the head's last matrix."""
    parameters = policy.last_of_head()
    for name, value in (("weight", found.weight), ("bias", found.bias)):
        if value is not None:
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
