"""A tokenizer's chat template, and what it does with system turns, tools and the end of a turn: found out by asking it.

Templates differ without saying so: some refuse a system turn or drop it, many drop tools, some never end a turn.
Each is asked once, with words that no template contains, whether they come back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.templating.limits import TEMPLATE_ERRORS, limited
from tunesmith.data.templating.rendering import rendered
from tunesmith.data.types import Message
from tunesmith.errors import DataError

Turn = dict[str, Any]

# Words that stand for a content, and can be found again in the rendered text.
SYSTEM, USER, ANSWER, FOLLOW_UP, TOOL, ARGUMENT = (
    f"zq{word}qz" for word in ("sys", "usr", "ans", "next", "tool", "arg")
)


class TemplateFailed(Exception):
    """The template raised, or did not end in time."""


def as_turn(message: Message) -> Turn:
    """The dictionary that templates expect."""
    turn: Turn = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = list(message.tool_calls)
    for key, value in (
        ("name", message.name),
        ("tool_call_id", message.tool_call_id),
        ("reasoning_content", message.reasoning),
    ):
        if value is not None:
            turn[key] = value
    return turn


@dataclass(frozen=True)
class Traits:
    """What a template does.

    `headers`   texts that open an answer, both in training and in a prompt; more than one where answers before the last
                question are opened otherwise. The longest comes first
    `lead`      white space that stands between what opens an answer and its words
    `gaps`      texts that end a turn, the first of them after the last answer, and the white space before each
    `stops`     whether the last answer ends with a token of the vocabulary; if not, EOS must be added
    `wants_ids` whether calls without an id of nine letters or digits are refused
    """

    headers: tuple[str, ...]
    lead: str
    gaps: dict[str, str]
    stops: bool
    system: bool
    tools: bool
    tool_turns: bool
    reasoning: bool
    wants_ids: bool

    @property
    def ends(self) -> tuple[str, ...]:
        return tuple(self.gaps)


class ChatTemplate:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # Where a turn ends: any added token will do. What a row may not hold unnoticed: those that are special.
        self.token_pattern = _any_of([*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens])
        marked = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.special_pattern = _any_of([*marked, *tokenizer.all_special_tokens])
        self.between: dict[tuple[str, str, bool], str] = {}
        """What was last written between the contents of two turns, by their roles, nothing before the first and behind
        the last, and by whether the second is the last."""

    def render(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] = (), *, open_answer: bool = False) -> str:
        """The text of `turns`; `open_answer` adds what comes before an answer."""
        try:
            with limited(*turns, *tools):
                return rendered(self.tokenizer, turns, tools, open_answer=open_answer)
        except TEMPLATE_ERRORS as error:
            raise TemplateFailed(str(error) or type(error).__name__) from error

    def tried(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] = (), *, open_answer: bool = False) -> str:
        """The text, or nothing where the template refuses."""
        try:
            return self.render(turns, tools, open_answer=open_answer)
        except TemplateFailed:
            return ""

    @cached_property
    def traits(self) -> Traits:
        user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
        if not self.tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template to write a conversation by",
                where="model.template",
                fix="set model.template to a name (chatml, llama3, alpaca, plain …), a file, or Jinja text; "
                "to ask a model: --template NAME with chat and generate, template=NAME in Python; plain writes the "
                "text alone, for a model to go on from",
            )
        try:
            whole = self.render([user, answer])
            prompt, bare = self.render([user], open_answer=True), self.render([user])
        except TemplateFailed as error:
            raise DataError(
                "the chat template cannot render one question and one answer",
                where="chat template",
                found=shown(str(error), 200),
                fix="set model.template to another one",
            ) from error
        if USER not in whole or ANSWER not in whole:
            raise DataError(
                "the chat template does not write out what the turns say",
                where="chat template",
                found=shown(whole, 200),
                fix="set model.template to another one",
            )
        between_turns = bare[bare.index(USER) + len(USER) :] if USER in bare else ""
        offered = prompt[len(bare) :] if prompt.startswith(bare) else ""
        longer = self.tried([user, answer, user | {"content": FOLLOW_UP}, answer | {"content": TOOL}])
        headers = dict.fromkeys(
            common_prefix(offered, text.partition(USER)[2].partition(ANSWER)[0].removeprefix(between_turns))
            for text in (whole, longer)
            if ANSWER in text
        )
        gaps, stops = self._ends(whole.partition(ANSWER)[2], user, answer)
        before = whole.partition(ANSWER)[0]
        lead = before[len(prompt) :]
        return Traits(
            headers=tuple(sorted((h for h in headers if h), key=len, reverse=True)) or ("",),
            lead=lead if before == prompt + lead and lead.isspace() else "",
            gaps=gaps,
            stops=stops,
            system=self._shows_system(user, answer),
            tools=TOOL in self.tried([user], [_tool()]),
            tool_turns=self._shows_tool_turns(user, answer, call_id="zqzqzqzqz"),
            reasoning=FOLLOW_UP in self.tried([user, answer | {"reasoning_content": FOLLOW_UP}]),
            wants_ids=self._shows_tool_turns(user, answer, call_id="zqzqzqzqz")
            and not self._shows_tool_turns(user, answer, call_id=None),
        )

    def _ends(self, tail: str, user: Turn, answer: Turn) -> tuple[dict[str, str], bool]:
        """How a turn ends: after the last answer, and in the middle where that differs; and what space is before."""
        last = self.token_pattern.search(tail)
        if last is None:
            marker = tail.rstrip()
            return ({marker: ""} if marker else {}), False
        end = last.end()
        while behind := self.token_pattern.match(tail, end):
            end = behind.end()
        first = tail[:end].lstrip()
        gaps = {first: tail[: end - len(first)]}
        middle = self.tried([user, answer, user | {"content": FOLLOW_UP}]).partition(ANSWER)[2].partition(FOLLOW_UP)[0]
        between = self.token_pattern.search(middle)
        before_user = self.tried([user, answer]).partition(USER)[0].rstrip()
        # A token that opens the user's turn closes nothing.
        is_new = between is not None and not middle.lstrip().startswith(first)
        if between and is_new and not before_user.endswith(between.group()):
            space = middle[: between.start()]
            gaps[between.group()] = space if space.isspace() else ""
        return gaps, True

    def _shows_system(self, user: Turn, answer: Turn) -> bool:
        return SYSTEM in self.tried([{"role": "system", "content": SYSTEM}, user, answer])

    def _shows_tool_turns(self, user: Turn, answer: Turn, *, call_id: str | None) -> bool:
        """Whether a call's name and arguments and the tool's reply all come back."""
        call: dict[str, Any] = {"type": "function", "function": {"name": TOOL, "arguments": {ARGUMENT: 1}}}
        reply: Turn = {"role": "tool", "content": FOLLOW_UP, "name": TOOL}
        if call_id is not None:
            call["id"] = reply["tool_call_id"] = call_id
        turns = [user, {"role": "assistant", "content": "", "tool_calls": [call]}, reply, answer]
        text = self.tried(turns)
        return TOOL in text and ARGUMENT in text and FOLLOW_UP in text and ANSWER in text

    @cached_property
    def takes_role_tool(self) -> bool:
        """Whether a reply of a tool is shown, and not as the assistant's own words."""
        before = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]
        text = self.tried([*before, {"role": "tool", "content": FOLLOW_UP}])
        return FOLLOW_UP in text and text != self.tried([*before, {"role": "assistant", "content": FOLLOW_UP}])


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted({token for token in tokens if token.strip()}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _tool() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}}
    return {"type": "function", "function": {"name": TOOL, "description": "x", "parameters": parameters}}


def common_prefix(a: str, b: str) -> str:
    """The longest text that both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return a[:low]


def common_suffix(a: str, b: str) -> str:
    """The longest text that both end with."""
    return common_prefix(a[::-1], b[::-1])[::-1]
