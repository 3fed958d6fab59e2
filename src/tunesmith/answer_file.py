"""`generate --file`: a file of prompts answered in batches into a JSONL file; it may be interrupted at any time.

Each answer is appended as soon as it ends, with a digest of all that made it: the prompt's ids, the weights and the
settings. A second run answers what is missing, and refuses a file whose answers were made otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.atomic import write_file
from tunesmith.data.reading.files import READERS, ending, read_file
from tunesmith.data.rows.conversation_rows import alpaca
from tunesmith.data.rows.conversation_rows import messages as messages_format
from tunesmith.data.rows.messages import Names, Unreadable, read_messages, read_tools
from tunesmith.data.rows.template_rows import prompt_template
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.types import Message, Origin
from tunesmith.errors import AS_UTF8, ELSEWHERE, DataError, MachineError, together
from tunesmith.models.generate import Generated
from tunesmith.models.session import Params, Session

PROMPTS_AT_A_TIME = 512
"""Tokenised and handed to `generate` together."""

_MISFIT = "answers to other prompts, or made with other settings or weights"


@dataclass(frozen=True)
class Prompt:
    row: int
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Done:
    """What a call of `answer_file` did."""

    answered: int
    already: int
    cancelled: bool


def read_prompts(path: Path | str, system: str | None = None, data: DataSettings | None = None) -> list[Prompt]:
    """The prompts of a file: text with one a line, or rows with `messages`, or text under prompt, question,
    instruction (with input) or text. `system` goes before those without a system turn. All broken rows at once.

    `data` is how the model's run read its rows: prompts are written by its template, if it has one, from columns of
    the same names.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("there is no such file of prompts", where=str(path), fix="check the spelling of --file")
    prompts = _read_prompts(path, system, data)
    if not prompts:
        raise DataError("there is no prompt in this file", where=str(path), fix="write one on each line")
    return prompts


def _read_prompts(path: Path, system: str | None, data: DataSettings | None) -> list[Prompt]:
    before = (Message("system", system),) if system else ()
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")  # not at U+2028 and its like, inside a prompt
        except UnicodeDecodeError as error:
            raise DataError("is not text in UTF-8", where=str(path), found=str(error), fix=AS_UTF8) from None
        return [Prompt(n, (*before, Message("user", line))) for n, line in enumerate(lines, 1) if line.strip()]
    if ending(path) not in READERS:
        raise DataError(
            "this is no file of prompts",
            where=str(path),
            found=ending(path) or "a name without an ending",
            expected=", ".join(READERS),
        )
    columns = {} if data is None else data.columns
    names = Names() if data is None else Names(data.message_keys, data.roles)
    fill = None
    if data is not None and isinstance(data.format, TemplateFormat):
        fill = prompt_template(data.format.model_copy(update={"system": system} if system else {}))
    prompts, errors = [], []
    for origin, row in read_file(path, None):
        row |= {wanted: row[yours] for wanted, yours in columns.items() if yours in row and wanted not in row}
        row = {name: value for name, value in row.items() if columns.get(name, name) is not None}
        try:
            messages = _messages_of(row, origin, names, fill)
            if messages[0].role != "system":
                messages = (*before, *messages)
            tools = read_tools(row["tools"]) if row.get("tools") else ()
            prompts.append(Prompt(origin.row, messages, tools))
        except Unreadable as error:
            errors.append(DataError(error.what, where=str(origin), found=error.found))
    if errors:
        raise together(list(errors))
    return prompts


Fill = Callable[[Mapping[str, Any]], tuple[Message, ...]]


def _messages_of(row: Mapping[str, Any], origin: Origin, names: Names, fill: Fill | None) -> tuple[Message, ...]:
    """The turns to answer; an answer that the row holds already is left off."""
    if fill is not None:
        try:
            return fill(row)
        except Unreadable:
            if not any(row.get(key) for key in ("messages", "conversations", "prompt")):
                raise
    for key in ("messages", "conversations", "prompt"):
        if isinstance(row.get(key), list):
            is_prompt = key == "prompt"
            turns = read_messages(row[key], key, names) if is_prompt else messages_format(row, origin, names).messages
            turns = turns[:-1] if turns and turns[-1].role == "assistant" else turns
            if not turns:
                raise Unreadable(f"the column {key!r} holds no turn to answer")
            return turns
    for key in ("prompt", "question", "instruction", "text"):
        if isinstance(row.get(key), str) and row[key].strip():
            if key == "instruction":
                return alpaca({**row, "output": ""}, origin).messages[:-1]
            return (Message("user", row[key]),)
    raise Unreadable(
        "no prompt in this row: it needs messages, prompt, question, instruction or text", found=", ".join(row)
    )


def refuse_unwritable(out: Path) -> None:
    """Known before a model is loaded: answers go into a file, and it can be written."""
    if out.is_dir():
        raise DataError("this is a folder; answers go into a file", where=str(out), fix="--out NAME.jsonl")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"the answers cannot be written: {error.strerror}", where=str(out), fix=ELSEWHERE) from error
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise MachineError("the answers cannot be written: no permission", where=str(out), fix="--out elsewhere")


def answer_file(
    session: Session,
    prompts: list[Prompt],
    out: Path | str,
    params: Params,
    *,
    adapter: str | None = None,
    max_rows: int = 128,
    on_progress: Callable[[int, int], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
    weights: str = "",
) -> Done:
    """Append the answers that `out` does not hold yet; when all are there, put them in the prompts' order.

    on_progress (answered so far, in all). Answers under way when `cancelled` says so are not written. `weights` tells
    the model and adapter at work from others of the same name.
    """
    out = Path(out)
    held = _read_done(out)
    already, stopped = 0, False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            for start in range(0, len(prompts), PROMPTS_AT_A_TIME):
                some = prompts[start : start + PROMPTS_AT_A_TIME]
                ids = [session.prompt_ids(prompt.messages, prompt.tools, adapter) for prompt in some]
                digests = [_digest(prompt_ids, adapter, params, weights) for prompt_ids in ids]
                _refuse_misfits(out, held, some, digests)
                missing = [i for i, prompt in enumerate(some) if prompt.row not in held]
                already += len(some) - len(missing)
                if stopped or (cancelled and cancelled()):
                    stopped = True
                    continue

                def write(
                    index: int, made: Generated, some: list[Prompt] = some, digests: list[str] = digests,
                    missing: list[int] = missing,
                ) -> None:  # fmt: skip
                    if made.finish_reason == "cancelled":
                        return
                    prompt = some[missing[index]]
                    row = _row(prompt, session.text(made, params, adapter), made, digests[missing[index]])
                    _append(file, row)
                    held[prompt.row] = row
                    if on_progress:
                        on_progress(len(held), len(prompts))

                made = session.generate(
                    [ids[i] for i in missing],
                    params,
                    adapters=[adapter] * len(missing),
                    on_answer=write,
                    cancelled=cancelled,
                    row_ids=[some[i].row for i in missing],
                    max_rows=max_rows,
                )
                stopped = any(answer.finish_reason == "cancelled" for answer in made)
        if not stopped:
            _put_in_order(out, [held[prompt.row] for prompt in prompts])
    except OSError as error:
        raise MachineError(f"the answers cannot be written: {error.strerror}", where=str(out), fix=ELSEWHERE) from error
    return Done(len(held) - already, already, stopped)


def _row(prompt: Prompt, text: str, made: Generated, digest: str) -> dict[str, Any]:
    return {
        "row": prompt.row,
        "prompt": prompt.messages[-1].content,
        "answer": text,
        "finish_reason": made.finish_reason,
        "num_tokens": len(made.token_ids),
        "made_by": digest,
    }


def _append(file: IO[str], row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def _digest(prompt_ids: list[int], adapter: str | None, params: Params, weights: str) -> str:
    text = json.dumps([prompt_ids, adapter, asdict(params), weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_done(out: Path) -> dict[int, dict[str, Any]]:
    """What `out` holds, by row. A last line without its end was cut by a kill: it is taken off."""
    if not out.exists():
        return {}
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            rows[int(row["row"])] = row
            row["made_by"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "this file was not written by generate; it is left as it is",
                where=f"{out}, line {number}",
                fix="give --out another name",
            ) from error
    if len(whole) < len(data):
        if not whole and not data.startswith(b'{"row"'):
            raise DataError("this file was not written by generate", where=str(out), fix="give --out another name")
        os.truncate(out, len(whole))
    return rows


def _refuse_misfits(out: Path, held: dict[int, dict[str, Any]], prompts: list[Prompt], digests: list[str]) -> None:
    pairs = zip(prompts, digests, strict=True)
    misfits = [p.row for p, digest in pairs if p.row in held and held[p.row]["made_by"] != digest]
    if misfits:
        raise DataError(
            f"the file holds {_MISFIT}",
            where=str(out),
            found=f"rows {', '.join(map(str, misfits[:10]))}{' …' if len(misfits) > 10 else ''}",
            fix="give --out another name, or delete the file",
        )


def _put_in_order(out: Path, rows: list[dict[str, Any]]) -> None:
    """Rewrite the file in the prompts' order, all at once."""
    write_file(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
