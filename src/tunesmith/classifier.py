"""A model that ends in a classification head, asked: texts in, classes with probabilities (or rewards) out.

classifier = Classifier(open_session("runs/spam"))
classifier.classify(["You have won a prize!"])[0].label        "spam"
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.adapters.heads import ClassHead
from tunesmith.atomic import write_file
from tunesmith.data.pack import micro_batches
from tunesmith.data.problems import counted, shown
from tunesmith.data.reading.files import read_file
from tunesmith.data.rows.asked import turns_to_answer
from tunesmith.data.rows.messages import Names, Unreadable, read_messages
from tunesmith.data.rows.template_rows import text_template
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.types import Conversation, Document, Example, Message, Origin, Text
from tunesmith.errors import AdapterError, DataError, together
from tunesmith.models.policy import Policy, probe
from tunesmith.objectives.classify_losses import MEANINGS
from tunesmith.score.classification import decided
from tunesmith.session import Session
from tunesmith.train.memory import default_micro_batch_tokens

IN_PYTHON = Origin("text", 1)


@dataclass(frozen=True)
class Prediction:
    labels: tuple[str, ...]
    """What the text is of: one class, or all labels that reach their threshold."""
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        return ", ".join(self.labels)


@dataclass
class Classifier:
    """`session`, whose model ends in a head; the adapter that is set in it answers."""

    session: Session
    max_length: int | None = None
    """Longest text in tokens; None: what the model has positions for."""
    policy: Policy = field(init=False)

    def __post_init__(self) -> None:
        self.policy, _ = probe(self.session.model, self.session.switch)

    @property
    def head(self) -> ClassHead:
        head = self.session.head
        if head is None:
            raise AdapterError("this model ends in words: it has no head to classify with", fix="session.answer")
        return head

    def classify(self, texts: Sequence[str | Sequence[Message] | Text]) -> list[Prediction]:
        """Text as a document, or a list of messages as a conversation: as the rows of training were."""
        head = self.head
        if head.meaning == "reward":
            raise AdapterError("this model gives rewards, not classes", fix="Classifier.rewards")
        probabilities = MEANINGS[head.meaning].probabilities(self.outputs(texts)).numpy()
        is_ordered = head.meaning == "ordered"
        said = decided(probabilities, head.meaning == "several", head.thresholds, ordered=is_ordered)
        return [
            Prediction(
                tuple(label for label, is_so in zip(head.labels, row, strict=True) if is_so),
                {label: float(share) for label, share in zip(head.labels, shares, strict=True)},
            )
            for row, shares in zip(said, probabilities, strict=True)
        ]

    def rewards(self, texts: Sequence[str | Sequence[Message] | Text]) -> list[float]:
        """A number for each conversation that ends in an answer: higher is better."""
        if self.head.meaning != "reward":
            raise AdapterError("this model tells classes apart, it gives no rewards", fix="Classifier.classify")
        rewards: list[float] = self.outputs(texts).squeeze(-1).tolist()
        return rewards

    def outputs(self, texts: Sequence[str | Sequence[Message] | Text]) -> Tensor:
        """What the head gives [n, outputs], in fp32 on the CPU. What a text has too much is cut off, and said.

        DataError for a text alone, whose letters would each be read, and for what is neither text nor messages.
        """
        if isinstance(texts, str):
            raise DataError("one text alone", found=shown(texts, 40), expected='a list of texts: ["…", …]')
        renderer: Any = self.session.words_of(self.session.adapter).renderer
        examples, cut = [], 0
        most = min(filter(None, (self.session.positions(self.session.adapter), self.max_length)), default=None)
        for number, given in enumerate(texts):
            if not isinstance(given, str | Document | Conversation):
                given = turns_to_answer(given, f"text {number + 1}")
            ids, closing = self._ids(renderer, given)
            if not ids:
                raise DataError(
                    "a text has no tokens", where=f"text {number + 1}", found="nothing to read", fix="leave it out"
                )
            if most is not None and len(ids) > most:
                ids = [*ids[: most - len(closing)], *closing]
                cut += 1
            array = np.array(ids, dtype=np.int64)
            examples.append(Example(array, np.zeros(len(ids), dtype=np.float32), Origin("text", number + 1)))
        if cut:
            self.session.say(f"{counted(cut, 'text')} cut to the first {most:,} tokens")
        found_of: dict[int, Tensor] = {}
        with self.session.switch.set_to(self.session.adapter), self.policy.answering():
            for batch in micro_batches(examples, default_micro_batch_tokens(self.policy.device)):
                outputs = self.policy.scores(batch.to(self.policy.device)).cpu()
                for leaf, output in zip(batch.leaves, outputs, strict=True):
                    found_of[batch.examples[leaf].origin.row] = output
        if not found_of:
            return torch.zeros(0, self.head.num_outputs)
        return torch.stack([found_of[number + 1] for number in range(len(texts))])

    def _ids(self, renderer: Any, given: str | Sequence[Message] | Text) -> tuple[list[int], list[int]]:
        """(ids, those of them that close the text), as training read such a text."""
        if isinstance(given, str) and self.head.has_turns:
            given = [Message("user", given)]
        text = as_text(given)
        if self.head.meaning == "reward" and isinstance(text, Conversation):
            return renderer.render(text).token_ids.tolist(), []
        ids, closing = renderer.classified_ids(text)
        return ids, closing


def as_text(given: str | Sequence[Message] | Text) -> Text:
    """Text as a document, messages as a conversation."""
    if isinstance(given, Document | Conversation):
        return given
    return Document(given, IN_PYTHON) if isinstance(given, str) else Conversation(tuple(given), IN_PYTHON)


def texts_of(path: Path, data: DataSettings | None) -> list[Text]:
    """The texts of a file: one a line, or rows with `text`, `messages` or `prompt`; or what the run's template makes of
    their columns. All broken rows at once."""
    if not path.is_file():
        raise DataError("there is no such file of texts", where=str(path), fix="check the spelling of --file")
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return [Document(line, Origin(str(path), n)) for n, line in enumerate(lines, 1) if line.strip()]
    fill = None if data is None or not isinstance(data.format, TemplateFormat) else text_template(data.format)
    columns = {} if data is None else data.columns
    names = Names() if data is None else Names(data.message_keys, data.roles)
    texts: list[Text] = []
    errors: list[Exception] = []
    for origin, row in read_file(path, None):
        row |= {wanted: row[yours] for wanted, yours in columns.items() if yours in row and wanted not in row}
        row = {name: value for name, value in row.items() if columns.get(name, name) is not None}
        try:
            texts.append(_of_row(row, origin, names) if fill is None else fill(row, origin))
        except Unreadable as error:
            errors.append(DataError(error.what, where=str(origin), found=error.found))
    if errors:
        raise together(errors)  # type: ignore[arg-type]
    return texts


def _of_row(row: Mapping[str, Any], origin: Origin, names: Names) -> Text:
    answer = next(
        (key for key in ("completion", "chosen", "response", "answer") if isinstance(row.get(key), str)), None
    )
    if answer is not None and isinstance(row.get("prompt"), str):
        return Conversation((Message("user", row["prompt"]), Message("assistant", row[answer])), origin)
    for key in ("messages", "conversations"):
        if row.get(key) is not None:
            return Conversation(read_messages(row[key], key, names), origin)
    for key in ("text", "prompt"):
        if isinstance(row.get(key), str) and row[key].strip():
            return Document(row[key], origin)
    raise Unreadable("no text in this row: it needs text, messages or prompt", found=", ".join(row))


def as_lines(texts: Sequence[Text], predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """One record for each text: its row, its labels, and what each class has."""
    for text, made in zip(texts, predictions, strict=True):
        shares = {label: round(share, 6) for label, share in made.probabilities.items()}
        yield {"row": text.origin.row, "label": made.label, "probabilities": shares}


def classify_file(classifier: Classifier, texts: Sequence[Text], out: Path) -> None:
    """Write what the head gives each text, a line of JSON each."""
    lines: Iterable[dict[str, Any]]
    if classifier.head.meaning == "reward":
        found = zip(texts, classifier.rewards(texts), strict=True)
        lines = ({"row": text.origin.row, "reward": round(reward, 6)} for text, reward in found)
    else:
        lines = as_lines(texts, classifier.classify(texts))
    write_file(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
