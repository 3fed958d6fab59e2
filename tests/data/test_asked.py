"""What is asked in Python means one thing, or is refused in a sentence."""

from __future__ import annotations

import pytest
import tiny_tokenizers as tiny

from tunesmith.data.render import Renderer
from tunesmith.data.rows.asked import GoesOn, conversations_to_answer
from tunesmith.data.types import Document, Message, Origin
from tunesmith.errors import DataError

HI = Message("user", "hi")


@pytest.mark.parametrize(
    "given", ["hi", [HI], (HI,), [{"role": "user", "content": "hi"}], [{"from": "human", "value": "hi"}]]
)
def test_every_way_to_write_a_conversation(given):
    assert conversations_to_answer([given, "more"]) == [[HI], [Message("user", "more")]]


def test_messages_of_both_kinds_stand_together_and_calls_join_their_turn():
    call = {"name": "f", "arguments": "{}"}
    given = [HI, {"from": "gpt", "value": "so"}, {"from": "function_call", "value": call}, Message("tool", "r")]
    first, said, reply = conversations_to_answer([given])[0]
    assert (first, reply) == (HI, Message("tool", "r"))
    assert said.content == "so"
    assert len(said.tool_calls) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("q 1", "takes a list of conversations.*one alone: q 1.*put it into a list"),
        ([HI], "one alone.*put it into a list"),
        ([{"role": "user", "content": "hi"}], "one alone"),
        (None, "NoneType None.*give a list"),
        ({"a": "b"}, "dict"),
        ([5], "conversation 1: a conversation is text.*int 5"),
        (["a", []], "conversation 2: a conversation has no turn"),
        ([["hi"]], "neither a Message nor a dictionary.*str hi"),
        ([[{"role": "user"}]], "conversation 1: message 1 of .* has no content"),
        ([[{"role": "bard", "content": "x"}]], "a role nobody knows.*bard"),
    ],
)
def test_what_is_no_list_of_conversations_is_refused(given, says):
    with pytest.raises(DataError, match=f"(?s){says}") as caught:
        conversations_to_answer(given)
    assert "data.roles" not in str(caught.value), "no recipe reads these"


@pytest.mark.parametrize("adds_bos", [False, True])
def test_plain_text_is_asked_as_it_was_learned(adds_bos):
    """What is asked are the tokens with which training on a longer text begins, and the tokenizer stays as it was."""
    tokenizer = tiny.byte_level(None, adds_bos=adds_bos)
    asked = GoesOn(tokenizer).prompt_ids([Message("user", "the fox")])
    learned = Renderer(tokenizer).render(Document("the fox jumps", Origin("f", 1))).token_ids.tolist()
    assert learned[: len(asked)] == asked
    assert not tokenizer.chat_template
