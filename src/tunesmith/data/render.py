"""From what a row means to what the model sees: token ids and the mask. Special tokens and mask are decided here alone.

BOS     exactly once at the start where the tokenizer or its template uses one, whichever of the two writes it.
Mask    answers and their end token are learned (`masking/mask.py`); in a document, and in a row that is learned whole,
        every token but the first.
Prompt  `prompt_ids` gives for generation the very ids that training begins with.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from tunesmith.data.masking.answering import answer_spans, learned_runs
from tunesmith.data.masking.mask import Marks, MaskUnknown, Span, ends_of_others, learned_spans, with_ends
from tunesmith.data.masking.tokens import learned_tokens, token_run
from tunesmith.data.problems import Problems, shown
from tunesmith.data.rows.messages import framed
from tunesmith.data.settings import Ends
from tunesmith.data.templating import call_ids
from tunesmith.data.templating.chat import ANSWER, USER, ChatTemplate, TemplateFailed, as_turn
from tunesmith.data.types import Conversation, Document, Example, Marked, Message, Origin, Piece, Pieces, Runs, Text
from tunesmith.errors import DataError, ModelError

BATCH = 512

_TOOLS_HEAD = (
    "You may call functions. They are described by JSON, one a line:\n<tools>\n{tools}\n</tools>\n"
    'To call one, write <tool_call>{{"name": …, "arguments": {{…}}}}</tool_call>.'
)


@dataclass
class Rendering:
    """Examples in the order of their rows, and what was counted on the way.

    `unprompted`  rows in which an earlier turn is shown otherwise than generation showed it
    `straddled`   rows whose tokens at the border of prompt and answer are others than in generation: one reaches over
                  it, or white space before it is cut otherwise where nothing follows
    `control`     rows whose own text holds special tokens of the tokenizer
    `hidden`      rows with words that the template does not write out
    """

    examples: list[Example] = field(default_factory=list)
    unprompted: list[Origin] = field(default_factory=list)
    straddled: list[Origin] = field(default_factory=list)
    control: list[Origin] = field(default_factory=list)
    hidden: list[Origin] = field(default_factory=list)


@dataclass(frozen=True)
class _Text:
    """A rendered row before it is tokenised."""

    text: str
    spans: list[Span]
    add_eos: bool
    origin: Origin
    is_document: bool = False
    pieces: tuple[Piece, ...] | None = None
    is_hidden: bool = False
    is_whole: bool = False
    learns_eos: bool = True
    answers: list[Span] | None = None


class Renderer:
    """Renders rows with one tokenizer. `notes` says aloud where the template needed help."""

    def __init__(
        self, tokenizer: Any, *, system_turn: Literal["keep", "into-user"] = "keep", learn_ends: Ends = "turn"
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "the tokenizer is not a fast one, which knows the place of each token in the text",
                found=type(tokenizer).__name__,
                fix="convert it with transformers (AutoTokenizer, then save_pretrained)",
            )
        self.tokenizer = tokenizer
        self.system_turn, self.learn_ends = system_turn, learn_ends
        self.chat = ChatTemplate(tokenizer)
        self._encoder = copy.deepcopy(tokenizer.backend_tokenizer)
        # Post-processors trim white space off the offsets; special tokens are ours to add.
        self._encoder.post_processor = None
        self._encoder.no_truncation()
        self._encoder.no_padding()
        bare, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
        at = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), 0)
        self._before: list[int] = full[:at]
        self._after: list[int] = full[at + len(bare) :]
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens at which generation stops: EOS, and what ends a turn where that is a token."""
        ids = [] if self.eos_id is None else [self.eos_id]
        if self.tokenizer.chat_template:
            added = self.tokenizer.added_tokens_decoder
            for end in self.chat.traits.ends:
                encoded = self._encoder.encode(end, add_special_tokens=False).ids
                ids += [token for token in encoded[-1:] if len(encoded) == 1 or token in added]
        return tuple(dict.fromkeys(ids))

    def render(self, row: Text) -> Example:
        return self.render_all([row]).examples[0]

    def render_all(self, rows: Sequence[Text]) -> Rendering:
        """Every row as the model sees it; rows that cannot be rendered are one DataError that names them."""
        problems = Problems("rows cannot be rendered by the chat template")
        rendering = Rendering()
        for start in range(0, len(rows), BATCH):
            texts: list[_Text] = []
            for row in rows[start : start + BATCH]:
                try:
                    texts.append(self._document(row) if isinstance(row, Document) else self._conversation(row))
                except (TemplateFailed, MaskUnknown, TokensUnknown) as error:
                    problems.add(_row_error(error, row.origin))
                    continue
                if self._holds_control_token(row):
                    rendering.control.append(row.origin)
            if not problems.count:
                self._tokenise(texts, rendering)
        problems.raise_if_any()
        return rendering

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Ids to generate from: the very ids that training shows before the answer."""
        try:
            messages, tools = self._fitted(messages, tools)
            text = self.chat.render([as_turn(turn) for turn in messages], tools, open_answer=add_generation_prompt)
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            what = "the prompt holds half of a UTF-16 pair, which is no character"
            raise DataError(what, fix="take it out, or write the whole character") from error
        except TemplateFailed as error:
            fix = _INTO_USER if isinstance(error, NoSystemTurn) else None
            raise DataError(f"the chat template refuses the prompt: {error}", fix=fix) from error
        ids = self._encoder.encode(text, add_special_tokens=False).ids
        drop, before = self._bos_repair(ids)
        return before + ids[drop:]

    def continuation_ids(self, turns: Sequence[Message]) -> list[int]:
        """Ids of what follows an answer that has ended: `turns`, and what opens the next answer."""
        try:
            whole, _ = self._fitted([Message("user", USER), Message("assistant", ANSWER), *turns], ())
            text = self.chat.render([as_turn(turn) for turn in whole], open_answer=True)
        except TemplateFailed as error:
            what = f"the chat template refuses what follows an answer: {error}"
            raise DataError(what, fix="set model.template to one that takes such turns (chatml)") from error
        behind = text.partition(ANSWER)[2]
        start = len(behind) - len(behind.lstrip())
        end = next((end for end in self.chat.traits.ends if behind.startswith(end, start)), None)
        if end is None or not self.chat.traits.stops:
            raise DataError(
                "the chat template does not end an answer with a token: what follows one cannot be told from it",
                where="model.template",
                fix="set model.template to one that does, such as chatml",
            )
        encoding = self._encoder.encode(behind, add_special_tokens=False)  # with the end, as tokens stand behind it
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [int(token) for token, (first, _) in pairs if first >= start + len(end)]

    def classified_ids(self, text: Text) -> tuple[list[int], list[int]]:
        """(ids of what a classifier reads, those among them that close it): a document as the tokenizer writes one, a
        conversation as the chat template does."""
        if isinstance(text, Conversation):
            return self.prompt_ids(text.messages, text.tools, add_generation_prompt=False), []
        ids = self._encoder.encode(text.text, add_special_tokens=False).ids
        drop, before = self._bos_repair(ids) if not self._after else (0, list(self._before))
        return [*before, *ids[drop:], *self._after], list(self._after)

    def _holds_control_token(self, row: Text) -> bool:
        search = self.chat.special_pattern.search
        if isinstance(row, Document):
            return search(row.text) is not None
        return any(search(turn.content) for turn in row.messages)

    def _document(self, row: Document) -> _Text:
        if isinstance(row, Pieces):
            self._refuse_unknown_ids(row)
            return _Text("", [], False, row.origin, pieces=row.pieces)
        if self.eos_id is None:
            self._notes["the tokenizer has no EOS: documents do not end with one"] = None
        return _Text(row.text, [Span(0, len(row.text), True)], self.eos_id is not None, row.origin, is_document=True)

    def _refuse_unknown_ids(self, row: Pieces) -> None:
        size = len(self.tokenizer)
        ids = (token for piece in row.pieces if not isinstance(piece.content, str) for token in piece.content)
        odd = next((token for token in ids if not 0 <= token < size), None)
        if odd is not None:
            raise TokensUnknown(f"token {odd} is none of the tokenizer's {size:,}")

    def _of_pieces(self, pieces: Sequence[Piece], origin: Origin) -> Example:
        ids: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            text = piece.content
            own = self._encoder.encode(text, add_special_tokens=False).ids if isinstance(text, str) else list(text)
            ids += own
            weights += [float(piece.is_learned)] * len(own)
        weights[:1] = [0.0] * len(weights[:1])  # nothing comes before the first token
        made = Example(np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32), origin)
        runs = learned_runs(made)  # pieces know no turns: the last that is learned answers
        return replace(made, answers=tuple(runs[-1:])) if len(runs) > 1 else made

    def _conversation(self, row: Conversation) -> _Text:
        messages, tools = self._fitted(row.messages, row.tools)
        turns = [as_turn(turn) for turn in messages]
        is_open = bool(turns) and turns[-1]["role"] == "assistant" and not self.chat.traits.stops
        learned = [turn.is_learned for turn in messages]
        if row.is_whole:  # nothing need be looked for but where an answer that nothing ends is cut
            learned = [is_open and index == len(turns) - 1 for index in range(len(turns))]
        if not self.chat.traits.reasoning and any(turn.reasoning and turn.is_learned for turn in messages):
            self._notes["the chat template drops reasoning: it is not trained"] = None
        if "strftime_now" in str(self.tokenizer.chat_template):
            self._notes["the chat template writes today's date: on another day the rows have other tokens"] = None
        marked = [] if row.is_whole else [(at, turn) for at, turn in enumerate(messages) if isinstance(turn, Marked)]
        marks = {at: Marks(turn.spans, turn.learns_rest) for at, turn in marked if not turn.is_learned_whole}
        text, spans = learned_spans(self.chat, turns, learned, tools, marks)
        answers = answer_spans(row, messages, turns, tools, self.chat, text, spans, self.learn_ends)
        is_hidden = not all(_is_written(turn, text, reasoning=self.chat.traits.reasoning) for turn in messages)
        ends_open = bool(spans) and learned[-1] and is_open
        if ends_open:
            self._notes[f"the chat template never ends an answer: {self._remedy()}"] = None
            text = text[: spans[-1].end]
        which = self.learn_ends
        last_is_other = bool(spans) and not spans[-1].is_answer
        spans = with_ends(self.chat, text, spans, which)
        if not row.is_whole and (which in ("learned", "all") or (which == "last" and last_is_other)):
            wanted = [turn.learns_words for turn in messages] if which == "last" else learned
            spans += ends_of_others(self.chat, text, turns, wanted, tools, which)
        return _Text(
            text,
            spans,
            ends_open and self.eos_id is not None,
            row.origin,
            is_hidden=is_hidden,
            is_whole=row.is_whole,
            learns_eos=self.learn_ends != "none",
            answers=answers,
        )

    def _remedy(self) -> str:
        if self.eos_id is None:
            return "the tokenizer has no EOS: no end is learned"
        return "EOS is added, and learned" if self.learn_ends != "none" else "EOS is added, and not learned"

    def _fitted(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> tuple[list[Message], tuple[dict[str, Any], ...]]:
        """The turns as the template can show them: where needed, tools as text and the system turn in the user's."""
        turns, kept = list(messages), tuple(tools)
        traits = self.chat.traits
        has_tools = bool(kept) or any(turn.tool_calls or turn.role == "tool" for turn in turns)
        if has_tools and not (traits.tools and traits.tool_turns):
            self._notes[
                "the chat template has no place for tools: they are described in the system turn, "
                "and calls are written as <tool_call>{json}</tool_call>"
            ] = None
            turns, kept = self._tools_as_text(turns, kept), ()
        elif has_tools and traits.wants_ids and not call_ids.all_fit(turns):
            self._notes["the chat template wants ids of nine letters or digits with calls: they are counted"] = None
            turns = call_ids.counted(turns)
        if turns and turns[0].role == "system" and (self.system_turn == "into-user" or not traits.system):
            if self.system_turn == "keep" and messages and messages[0].role == "system":
                raise NoSystemTurn("it has no system turn")
            self._notes["system turns are put in front of the first user turn"] = None
            if isinstance(turns[0], Marked):
                self._notes["what is learned of a system turn to the character is not: it stands in a user turn"] = None
            is_wanted, turns = turns[0].is_learned, _system_into_user(turns)
            if is_wanted and not next(turn for turn in turns if turn.role == "user").is_learned:
                self._notes["system turns are not learned: they stand in a user turn, which is not"] = None
        return turns, kept

    def _tools_as_text(self, turns: list[Message], tools: tuple[dict[str, Any], ...]) -> list[Message]:
        written = [self._call_as_text(turn) for turn in turns]
        if not tools:
            return written
        described = _TOOLS_HEAD.format(tools="\n".join(_json(tool["function"]) for tool in tools))
        if written and written[0].role == "system":
            return [framed(written[0], "", f"\n\n{described}"), *written[1:]]
        return [Message("system", described), *written]

    def _call_as_text(self, turn: Message) -> Message:
        if turn.tool_calls:
            calls = "\n".join(f"<tool_call>{_json(call['function'])}</tool_call>" for call in turn.tool_calls)
            return framed(turn, "", f"\n{calls}" if turn.content else calls, tool_calls=())
        if turn.role == "tool" and not self.chat.takes_role_tool:
            changes = {"role": "user", "name": None, "tool_call_id": None}
            return framed(turn, "<tool_response>", "</tool_response>", **changes)
        return turn

    def _bos_repair(self, ids: Sequence[int]) -> tuple[int, list[int]]:
        """How many ids to drop in front, and which to put there, so that BOS stands exactly once."""
        if self.bos_id is None:
            return 0, []
        count = next((i for i, token in enumerate(ids) if token != self.bos_id), len(ids))
        if count > 1:
            self._notes["the chat template writes BOS more than once: one is kept"] = None
        if count == 0 and self.bos_id in self._before:
            return 0, [self.bos_id]
        return max(count - 1, 0), []

    def _tokenise(self, texts: Sequence[_Text], rendering: Rendering) -> None:
        encodings = self._encoder.encode_batch([item.text for item in texts], add_special_tokens=False)
        for item, encoding in zip(texts, encodings, strict=True):
            if item.pieces is not None:
                rendering.examples.append(self._of_pieces(item.pieces, item.origin))
                continue
            ids = encoding.ids
            offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            learned, straddled = learned_tokens(item.text, offsets, item.spans)
            if item.is_whole:
                learned, straddled = np.ones(len(ids), dtype=bool), False
            drop, before = (0, list(self._before)) if item.is_document else self._bos_repair(ids)
            if item.is_document and self.bos_id is not None and ids[:1] == [self.bos_id]:
                before = []
            after = [self.eos_id] if item.add_eos and (not ids or ids[-1] != self.eos_id) else []
            token_ids = np.array(before + ids[drop:] + after, dtype=np.int64)
            of_after = np.full(len(after), float(item.learns_eos))
            weights = np.concatenate([np.zeros(len(before)), learned[drop:], of_after]).astype(np.float32)
            weights[:1] = 0.0  # nothing comes before the first token, so nothing can predict it
            made = Example(token_ids, weights, item.origin)
            if item.answers is not None:
                made = replace(made, answers=_answer_runs(item, offsets, len(before) - drop, len(after)))
            elif weights[1:2].any() and not item.is_document:  # else it would pass for plain text
                made = replace(made, answers=tuple(learned_runs(made)))
            rendering.examples.append(made)
            if item.is_hidden:
                rendering.hidden.append(item.origin)
            prompted = (span.start for span in item.spans if span.is_prompted and not span.is_inner)
            if straddled or any(self._is_cut_otherwise(item.text, start) for start in prompted):
                rendering.straddled.append(item.origin)
            if not all(span.is_prompted for span in item.spans):
                rendering.unprompted.append(item.origin)

    def _is_cut_otherwise(self, text: str, border: int) -> bool:
        """Whether the white space before `border` has other tokens when nothing follows. Only runs of it can."""
        if border < 2 or not text[border - 2 : border].isspace():
            return False
        before, behind = text[max(border - 32, 0) : border], text[border : border + 16]
        alone = self._encoder.encode(before, add_special_tokens=False).ids
        together = self._encoder.encode(before + behind, add_special_tokens=False).ids
        return bool(together[: len(alone)] != alone)


def _answer_runs(item: _Text, offsets: np.ndarray, shift: int, num_after: int) -> Runs:
    """Where answers stand in an example: `shift` tokens behind their place in the text, the last with what is added."""
    runs = [token_run(item.text, offsets, span) for span in item.answers or ()]
    runs = [(max(start + shift, 0), max(end + shift, 0)) for start, end in runs]
    return (*runs[:-1], *((start, end + num_after) for start, end in runs[-1:]))


def _system_into_user(turns: list[Message]) -> list[Message]:
    system, rest = turns[0], turns[1:]
    first = next((index for index, turn in enumerate(rest) if turn.role == "user"), None)
    if first is None:
        return [replace(system, role="user"), *rest]
    joined = framed(rest[first], f"{system.content}\n\n")
    return [*rest[:first], joined, *rest[first + 1 :]]


def _is_written(turn: Message, text: str, *, reasoning: bool) -> bool:
    """Whether all that a turn says stands in `text`, as it is or quoted as JSON; white space around it may go."""
    said = [turn.content.strip(), (turn.reasoning or "").strip() if reasoning else ""]
    return all(words in text or _json(words)[1:-1] in text for words in said)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class NoSystemTurn(TemplateFailed):
    """The template has no place for the system turn that the row or the prompt has."""


_INTO_USER = (
    "put it before the user's turn: --system-turn into-user with chat, generate and evaluate; "
    'in Python open_session(…, system_turn="into-user"); in a recipe data.system_turn=into-user'
)


class TokensUnknown(Exception):
    """A row of token ids was made with another tokenizer."""


def _row_error(error: Exception, origin: Origin) -> DataError:
    if isinstance(error, TokensUnknown):
        return DataError(
            str(error), where=str(origin), fix="tokenise the rows with this model's tokenizer, or give text"
        )
    if isinstance(error, MaskUnknown):
        return DataError(
            f"the chat template hides {error}, so that its mask cannot be known",
            where=str(origin),
            fix="set model.template to a template that writes turns out one after the other",
        )
    if isinstance(error, NoSystemTurn):
        fix = "set data.system_turn=into-user to put it before the user's"
        return DataError(f"the chat template refuses the row: {error}", where=str(origin), fix=fix)
    return DataError(
        f"the chat template refuses the row: {shown(str(error), 200)}",
        where=str(origin),
        fix="mend the row's turns, or set data.system_turn=into-user where it is the system turn that is refused",
    )
