"""The terminal chat: streamed answers, adapters changed at the prompt, the base beside an adapter.

Read from a terminal it prompts and edits lines; read from a pipe each line is a question and the output is plain.
Ctrl-C stops the answer; at an empty prompt, Ctrl-C or Ctrl-D leaves.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from tunesmith.data.types import Message
from tunesmith.errors import TunesmithError
from tunesmith.models.generate import Memory
from tunesmith.models.session import Params, Session

_NONE = ("none", "base")


def _number_or_none(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": _number_or_none,
    "max_new_tokens": int,
    "seed": int,
}
"""What /set changes, and how its text is read."""


@dataclass
class Chat:
    """One conversation. `handle` takes a line as typed and returns False when it asks to leave."""

    session: Session
    params: Params
    adapter: str | None = None
    system: str | None = None
    out: TextIO = field(default_factory=lambda: sys.stdout)
    interactive: bool = False
    history: list[Message] = field(default_factory=list)
    comparing: bool = False
    _memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        self.commands: dict[str, tuple[str, Callable[[str], object]]] = {
            "help": ("this list", self._help),
            "reset": ("forget the conversation, keep the system text", self._reset),
            "system": ("TEXT: instruct the model from the start; without TEXT, no longer", self._system),
            "adapter": ("NAME|none: who answers from now on", self._adapter),
            "adapters": ("those that are loaded", self._adapters),
            "compare": ("on or off: the base's answer beside the adapter's, side by side", self._compare),
            "set": (f"NAME=VALUE: {', '.join(SETTINGS)}; alone, show them", self._set),
            "save": ("FILE: append the conversation as a row of messages (JSONL)", self._save),
            "quit": ("leave", lambda _: None),
        }

    def handle(self, line: str) -> bool:
        line = line.strip()
        if not line:
            return True
        if not line.startswith("/"):
            self.ask(line)
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        if name not in self.commands:
            self._say(f"there is no command /{name}; /help lists them")
            return True
        self.commands[name][1](rest.strip())
        return True

    def ask(self, question: str) -> None:
        """Answer, streamed, and remember both turns; a refused question is forgotten."""
        self.history.append(Message("user", question))
        try:
            if self.comparing and self.adapter is not None:
                text = self._side_by_side()
            else:
                text = self._stream(self.adapter, self._memory)
        except TunesmithError as error:
            self.history.pop()
            self._say(str(error))
            return
        self.history.append(Message("assistant", text))

    def _messages(self) -> list[Message]:
        return [Message("system", self.system), *self.history] if self.system else list(self.history)

    def _stream(self, adapter: str | None, memory: Memory | None) -> str:
        pieces: list[str] = []
        started = time.perf_counter()

        def write(piece: str) -> None:
            pieces.append(piece)
            self.out.write(piece)
            self.out.flush()

        with _CtrlC() as ctrl_c:
            answer = self.session.stream(
                self._messages(), self.params, write, adapter=adapter, cancelled=ctrl_c.pressed, memory=memory
            )
        self.out.write("\n")
        self._rate(len(answer.token_ids), time.perf_counter() - started, answer.finish_reason)
        if answer.finish_reason == "stop":
            return self.session.text(answer, self.params, adapter)
        return "".join(pieces)

    def _side_by_side(self) -> str:
        """Both answers in one batch; the adapter's goes on in the conversation."""
        pair = [None, self.adapter]
        prompts = [self.session.prompt_ids(self._messages(), adapter=name) for name in pair]
        started = time.perf_counter()
        with _CtrlC() as ctrl_c:
            made = self.session.generate(prompts, self.params, adapters=pair, cancelled=ctrl_c.pressed)
        base, tuned = (self.session.text(answer, self.params, name) for answer, name in zip(made, pair, strict=True))
        self._two_columns(base, tuned)
        total = sum(len(answer.token_ids) for answer in made)
        self._rate(total, time.perf_counter() - started, made[1].finish_reason)
        return tuned

    def _two_columns(self, base: str, tuned: str) -> None:
        if not self.interactive:
            self.out.write(f"[base] {base}\n[{self.adapter}] {tuned}\n")
            return
        from rich.columns import Columns
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        console = Console(file=self.out)
        width = console.width // 2 - 1
        panels = [
            Panel(Text(text), title=title, width=width) for title, text in (("base", base), (str(self.adapter), tuned))
        ]
        console.print(Columns(panels))

    def _rate(self, num_tokens: int, seconds: float, reason: str) -> None:
        if self.interactive:
            note = {"length": ", cut at max_new_tokens", "cancelled": ", stopped"}.get(reason, "")
            self._say(f"[{num_tokens} tokens, {num_tokens / max(seconds, 1e-9):.0f} tokens/s{note}]")

    def _say(self, text: str) -> None:
        self.out.write(text + "\n")
        self.out.flush()

    def _help(self, _: str) -> None:
        for name, command in self.commands.items():
            self._say(f"/{name:<9} {command[0]}")

    def _reset(self, _: str) -> None:
        self.history.clear()
        self._say("the conversation is forgotten")

    def _system(self, text: str) -> None:
        self.system = text or None
        self._say(f"system: {text}" if text else "no system text")

    def _adapter(self, name: str) -> None:
        if name in self.session.adapters:
            self.adapter = name
        elif name.lower() in _NONE:
            self.adapter = None
        else:
            self._say(f"no adapter is called {name!r}; there are: {self._names()}")
            return
        self._say(f"{self.adapter or 'the base model'} answers")

    def _adapters(self, _: str) -> None:
        self._say(self._names())

    def _names(self) -> str:
        marked = [f"{name} *" if name == self.adapter else name for name in (None, *self.session.adapters) if name]
        return ", ".join([*marked, "none" if self.adapter else "none *"])

    def _compare(self, word: str) -> None:
        if self.adapter is None:
            self._say("the base answers already; choose an adapter to compare it with: /adapter NAME")
            return
        self.comparing = {"on": True, "off": False}.get(word.lower(), not self.comparing)
        self._say(f"comparing the base with {self.adapter}" if self.comparing else f"{self.adapter} answers alone")

    def _set(self, text: str) -> None:
        name, _, value = (part.strip() for part in text.partition("="))
        if name in SETTINGS and value:
            try:
                number = SETTINGS[name](value)
            except ValueError:
                self._say(f"{name} stays: {value!r} is no number for it")
                return
            try:
                changed = replace(self.params, **{name: number})
                changed.check()
            except ValueError as error:
                self._say(f"{name} stays: {error}")
                return
            self.params = changed
        elif text:
            self._say(f"/set takes NAME=VALUE with one of {', '.join(SETTINGS)}")
            return
        self._say(", ".join(f"{key}={getattr(self.params, key)}" for key in SETTINGS))

    def _save(self, name: str) -> None:
        if not name:
            self._say("/save takes the name of a file")
            return
        if not self.history:
            self._say("there is nothing to save yet")
            return
        turns = [{"role": turn.role, "content": turn.content} for turn in self._messages()]
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
        except OSError as error:
            self._say(f"{name} cannot be written: {error.strerror}")
            return
        self._say(f"saved {len(turns)} turns to {name}")


class _CtrlC:
    """SIGINT asks for the end of an answer for the length of a `with`; outside of the main thread it does nothing."""

    def __init__(self) -> None:
        self._pressed = False

    def pressed(self) -> bool:
        return self._pressed

    def __enter__(self) -> _CtrlC:
        import signal
        import threading

        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, *_: object) -> None:
        self._pressed = True

    def __exit__(self, *_: object) -> None:
        import signal

        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def run_chat(
    session: Session,
    *,
    params: Params | None = None,
    adapter: str | None = None,
    system: str | None = None,
    source: TextIO | None = None,
    out: TextIO | None = None,
) -> None:
    """Talk until /quit or the end of `source` (standard input)."""
    source, out = source or sys.stdin, out or sys.stdout
    interactive = source.isatty() and out.isatty()
    chat = Chat(session, params or Params(max_new_tokens=512), adapter, system, out, interactive)
    if not interactive:
        for line in source:
            if not chat.handle(line):
                return
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines and keeps a history once it is there)
    out.write(f"{adapter or 'the base model'} answers; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves\n")
    while True:
        try:
            line = input(f"{chat.adapter or 'base'}> ")
        except (EOFError, KeyboardInterrupt):
            out.write("\n")
            return
        if not chat.handle(line):
            return
