"""Tokenizers of a few hundred tokens: byte-level and word-mark (SentencePiece-like), with and without BOS."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the answer is 42.\n\nWhat is it? It is what it is.",
    "user assistant system question answer zebra crossing: yes, no; maybe!  two  spaces",
    "line\n\n\nline\n\n\nline\n\n\nline\n\n\nline",
    "### Instruction: ### Response: USER: ASSISTANT: naïve café ünïcode",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|end|>", "<|user|>"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
HEADER_ENDS_IN_SPACE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)
DOUBLE_BOS = "{{ bos_token + bos_token }}" + CHATML
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
NEVER_ENDS = (
    "{% for m in messages %}{{ '### ' + m['role'] + '\\n' + m['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)
EOS_AT_THE_END = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
DROPS_THOUGHT = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
EMPTY_THOUGHT_LAST = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Counts the turns at the top, so that no beginning of a conversation looks like the whole.
REWRITES = "{{ messages | length | string + ' turns\\n' }}" + CHATML
# As Mistral's: tools stand before the last question only, calls show no content, and nothing opens an answer.
TOOLS_AT_LAST_QUESTION = (
    "{{ bos_token }}{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% if m == asked[-1] and tools %}{{ 'TOOLS' + tools | tojson }}{% endif %}"
    "{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% elif m['tool_calls'] %}{{ 'CALLS' + m['tool_calls'] | tojson + eos_token }}"
    "{% elif m['role'] == 'tool' %}{{ 'RESULT' + m['content'] + 'END' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GENERATION_TAG = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] or '') }}"
    "{% for call in m['tool_calls'] or [] %}{{ '<call>' + call['function']['name'] + ' ' }}"
    "{% for key, value in call['function']['arguments'].items() %}{{ key + '=' + value | string }}{% endfor %}"
    "{{ '</call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level(
    template: str | None = None, *, adds_bos: bool = False, trims: bool = False, pad: str | None = None
) -> PreTrainedTokenizerFast:
    """`trims`: its post-processor cuts white space off the offsets, as that of many real tokenizers does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrapped(tokenizer, template, adds_bos, pad, [processors.ByteLevel(trim_offsets=True)] if trims else [])


def word_mark(
    template: str | None = None, *, adds_bos: bool = False, pad: str | None = None
) -> PreTrainedTokenizerFast:
    """As Llama 2's: a mark for spaces, put in front of every piece too, and single bytes for unknown letters."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} | {"▁"})
    pieces = SPECIAL + bytes_ + [letter for letter in letters if letter not in SPECIAL] + ["▁t", "▁th", "▁the", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "▁")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return _wrapped(tokenizer, template, adds_bos, pad, [])


def _wrapped(
    tokenizer: Tokenizer, template: str | None, adds_bos: bool, pad: str | None, first: list
) -> PreTrainedTokenizerFast:
    steps = list(first)
    if adds_bos:
        bos = ("<s>", tokenizer.token_to_id("<s>"))
        steps.append(processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos]))
    if steps:
        tokenizer.post_processor = steps[0] if len(steps) == 1 else processors.Sequence(steps)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad or "<unk>"
    )
    wrapped.chat_template = template
    return wrapped
