"""A session on a tiny model whose tokens are characters, for tests that need text and no tokenizer files."""

from __future__ import annotations

from tunesmith.adapters.attach import Switch
from tunesmith.models.session import Session
from tunesmith.models.tiny import tiny

EOS = 2
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?:;'-/()=_\n"


class Characters:
    """Token 10 + i is LETTERS[i]; what it does not know is a question mark."""

    def encode(self, text):
        return [10 + (LETTERS.index(c) if c in LETTERS else LETTERS.index("?")) for c in text]

    def decode(self, token_ids, **_):
        return "".join(LETTERS[(i - 10) % len(LETTERS)] for i in token_ids if i != EOS)


class Turns:
    """role letter, text, and token 3 after each turn."""

    end_ids = (EOS,)

    def __init__(self):
        self.seen = []

    def prompt_ids(self, messages, tools=()):
        self.seen.append(list(messages))
        tokens = Characters()
        ids = [i for turn in messages for i in [*tokens.encode(turn.role[0] + turn.content), 3]]
        return [*ids, 4]


def tiny_session(arch="llama", adapters=()):
    model = tiny(arch)
    switch = Switch()
    if adapters:
        import torch

        from tunesmith.adapters.attach import attach
        from tunesmith.adapters.lora import Settings, build

        paths = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        for path, slot in attach(model, [path for path in paths if "lm_head" not in path], switch).items():
            for number, name in enumerate(adapters):
                generator = torch.Generator().manual_seed(100 * number + len(path))
                adapter = build(Settings(r=2, alpha=8), slot.base, generator)
                torch.nn.init.normal_(adapter.B, std=0.5, generator=generator)
                slot.adapters[name] = adapter
        model.eval()
    return Session(model, Characters(), Turns(), switch, list(adapters))
