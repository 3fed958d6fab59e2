"""The head of a model that does not end in words: numbers for a text, which classes or a reward are read from.

The model is transformers' own `…ForSequenceClassification`, so that what is trained and merged here is served anywhere.
Its head is not of the base: it is drawn by a seed, trained in full, and travels with the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from tunesmith.errors import AdapterError, ModelError

Meaning = Literal["one", "several", "ordered", "reward"]
PROBLEMS: dict[Meaning, str] = {
    "one": "single_label_classification",
    "several": "multi_label_classification",
    "ordered": "multi_label_classification",
    "reward": "regression",
}
"""What transformers calls them. Of ordered classes, output k says whether the class is above the k-th."""


@dataclass(frozen=True)
class ClassHead:
    """What a classification head gives.

    `labels` are the classes; of ordered ones there is one output fewer. `thresholds`: from which probability on a label
    counts, where that is not a half.
    """

    meaning: Meaning
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    has_turns: bool = False
    """It was trained on texts that the chat template wrote."""
    weights: tuple[float, ...] = ()
    """What a row of each label weighed in its training, where they did not weigh the same."""

    @property
    def num_outputs(self) -> int:
        return max(1, len(self.labels) - (self.meaning == "ordered"))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs."""
        if self.meaning == "ordered":
            return tuple(f"above {label}" for label in self.labels[:-1])
        return self.labels or ("reward",)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_head(written: Any) -> ClassHead:
    """A head as `as_dict` wrote it."""
    try:
        found = ClassHead(
            written["meaning"],
            tuple(written["labels"]),
            tuple(written["thresholds"]),
            bool(written["has_turns"]),
            tuple(map(float, written.get("weights", ()))),
        )
    except (KeyError, TypeError) as error:
        what, fix = "what the adapter says of its head cannot be read", "copy its folder again"
        raise AdapterError(what, found=str(written)[:120], fix=fix) from error
    if found.meaning not in PROBLEMS:
        what = "what the adapter says of its head is not known here"
        raise AdapterError(what, found=str(found.meaning), expected=", ".join(PROBLEMS))
    return found


IN_CONFIG = "tunesmith_head"
"""Key of a model's config under which a head is written whole: transformers has no place for thresholds."""


def is_classifier(model: nn.Module) -> bool:
    """Whether `model` ends in a classification head."""
    return type(model).__name__.endswith("ForSequenceClassification")


def writes_no_answers() -> AdapterError:
    return AdapterError(
        "this model ends in a classification head: it writes no answers",
        fix='tunesmith generate SOURCE "text" names its class; tunesmith evaluate scores it by its loss; in Python '
        "tunesmith.classifier.Classifier(session)",
    )


def head_of_config(config: Any) -> ClassHead | None:
    """What the classification head of a model's folder gives; None where it ends in words."""
    architectures = getattr(config, "architectures", None) or [""]
    if len(architectures) != 1 or not architectures[0].endswith("ForSequenceClassification"):
        return None
    written = getattr(config, IN_CONFIG, None)
    if written is not None:
        return read_head(written)
    if config.problem_type == PROBLEMS["reward"] and config.num_labels > 1:
        raise ModelError(
            "the model's head gives several numbers at once, which is not known here",
            found="a regression",
            expected="classes, or one number (a reward)",
            fix="take a model without a head, or with a head for classes",
        )
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    if config.problem_type == PROBLEMS["reward"] or config.num_labels == 1:
        return ClassHead("reward") if names[0] in ("reward", "LABEL_0") else ClassHead("several", names)
    return ClassHead("several" if config.problem_type == PROBLEMS["several"] else "one", names)


def say_in_config(config: Any, head: ClassHead, pad_id: int | None) -> None:
    """Write into a model's config how many outputs its head has, and what they mean."""
    has = head_of_config(config)
    if has is not None and has.num_outputs != head.num_outputs:
        raise ModelError(
            "the model has a classification head already, of another number of outputs",
            found=f"{has.num_outputs}: {', '.join(has.names)[:120]}",
            expected=f"{head.num_outputs}: {', '.join(head.names)[:120]}",
            fix="take the model without that head, or rows with its classes",
        )
    named = has is not None and not all(name.startswith("LABEL_") for name in has.names)
    if has is not None and named and has.names != head.names:
        raise ModelError(
            "the model has a classification head already, of other classes or in another order",
            found=", ".join(has.names)[:120],
            expected=", ".join(head.names)[:120],
            fix="name the classes in its order: objective.labels",
        )
    config.num_labels = head.num_outputs
    config.id2label = dict(enumerate(head.names))
    config.label2id = {name: index for index, name in enumerate(head.names)}
    config.problem_type = PROBLEMS[head.meaning]
    note_in_config(config, head)
    if getattr(config, "pad_token_id", None) is None:  # transformers finds by it where a text ends
        config.pad_token_id = pad_id


def note_in_config(config: Any, head: ClassHead) -> None:
    """Write all that is known of a head into a model's config, so that a merged model means what its adapter did."""
    setattr(config, IN_CONFIG, head.as_dict())


@contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Inside, what a model's files have not is drawn by `seed`, and nothing is said of it."""
    said = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        hf_logging.set_verbosity(said)


def head_paths(model: PreTrainedModel, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """Paths of the modules with parameters that make the classification head, in the model's order.

    A pooler of the body (BERT's) is of it: files of encoders often have none.
    """
    if not is_classifier(model):
        return ()
    body = model.base_model_prefix
    return tuple(
        path
        for path, module in modules.items()
        if any(True for _ in module.parameters(recurse=False))
        and (path.partition(".")[0] != body or "pooler" in path.split("."))
    )
