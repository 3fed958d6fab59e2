"""What a recipe expects of its model, and what it is told where the model is another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CodeLlamaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)

from tunesmith.data.render import Renderer
from tunesmith.data.types import Conversation, Document, Message, Origin
from tunesmith.errors import ModelError
from tunesmith.models.load import has_other_special_tokens, load_config, load_tokenizer
from tunesmith.models.settings import ModelSettings
from tunesmith.models.tiny import config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))
from tiny_tokenizers import CHATML, NEVER_ENDS, byte_level, word_mark

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, "▁", "t", "h", "e", "a", "b", "▁t", "▁th", "▁the"]
LLAMA = {"vocab": {piece: i for i, piece in enumerate(PIECES)}, "merges": [("▁", "t"), ("▁t", "h"), ("▁th", "e")]}


def word_piece():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def bytes_of_a_class():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return GPT2Tokenizer(vocab={piece: i for i, piece in enumerate(["<|endoftext|>", *alphabet])}, merges=[])


MADE = {
    "llama": lambda: LlamaTokenizer(**LLAMA),
    "code llama": lambda: CodeLlamaTokenizer(**LLAMA),
    "word marks": word_mark,
    "bytes": byte_level,
    "gpt2": bytes_of_a_class,
    "word pieces": word_piece,
    "bert": lambda: BertTokenizer(vocab={"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each tokenizer, with the config of a Llama."""
    made = {}
    for name, make in MADE.items():
        made[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
        make().save_pretrained(made[name])
        shape = config("llama")
        shape.architectures = ["LlamaForCausalLM"]
        shape.save_pretrained(made[name])
    return made


def loaded(folder, **settings):
    return load_tokenizer(ModelSettings(name=str(folder), **settings))


# ---- the model's class


@pytest.mark.parametrize(
    "wanted", ["LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaModel", "AutoModelForCausalLM", None]
)
def test_any_head_of_the_family_will_do(folders, wanted):
    settings = ModelSettings(name=str(folders["llama"]), architecture=wanted)
    assert load_config(settings).model_type == "llama"


@pytest.mark.parametrize("wanted", ["MistralForCausalLM", "LamaForCausalLM", "AutoModelForCausalML", "GPT2LMHeadModel"])
def test_another_family_is_refused_with_the_model_s_own_class(folders, wanted):
    with pytest.raises(ModelError, match="another architecture") as caught:
        load_config(ModelSettings(name=str(folders["llama"]), architecture=wanted))
    error = caught.value
    assert (error.where, error.found, error.expected) == ("model.architecture", "LlamaForCausalLM", wanted)
    assert error.fix == "leave model.architecture out, or name the model's own: LlamaForCausalLM"


def test_a_config_that_names_no_class_is_known_by_its_type(tmp_path):
    config("gpt2").save_pretrained(tmp_path)
    assert load_config(ModelSettings(name=str(tmp_path), architecture="GPT2LMHeadModel")).model_type == "gpt2"
    with pytest.raises(ModelError, match="another architecture") as caught:
        load_config(ModelSettings(name=str(tmp_path), architecture="LlamaForCausalLM"))
    assert caught.value.found == "a model of the type gpt2"
    assert caught.value.fix == "leave model.architecture out"


# ---- the tokenizer's class

LLAMAS = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
FITS = {
    "llama": LLAMAS,
    "code llama": LLAMAS,
    "word marks": LLAMAS,
    "bytes": ("GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer"),
    "gpt2": ("GPT2Tokenizer", "GPT2TokenizerFast"),
    "word pieces": ("BertTokenizer", "BertTokenizerFast"),
    "bert": ("BertTokenizer", "BertTokenizerFast"),
}
CLASSES = sorted({name for names in FITS.values() for name in names} | {"T5Tokenizer", "ByT5Tokenizer"})


@pytest.mark.parametrize("wanted", CLASSES)
@pytest.mark.parametrize("tokenizer", FITS)
def test_which_class_fits_which_tokenizer(folders, tokenizer, wanted):
    own = type(loaded(folders[tokenizer])).__name__
    if wanted in FITS[tokenizer]:
        assert type(loaded(folders[tokenizer], tokenizer_class=wanted)).__name__ == own
        return
    with pytest.raises(ModelError, match="a tokenizer of another class") as caught:
        loaded(folders[tokenizer], tokenizer_class=wanted)
    assert caught.value.where == "model.tokenizer_class"
    assert caught.value.found.startswith(f"{own}, of ")
    assert caught.value.expected.startswith(f"{wanted}, of ")
    assert caught.value.fix.endswith(f"leave model.tokenizer_class out, or name the one that is there: {own}")


@pytest.mark.parametrize("tokenizer", FITS)
@pytest.mark.parametrize("wanted", ["AutoTokenizer", "PreTrainedTokenizerFast", None])
def test_what_all_of_them_are(folders, tokenizer, wanted):
    loaded(folders[tokenizer], tokenizer_class=wanted)


def test_what_is_found_is_said_by_its_pieces(folders):
    with pytest.raises(ModelError) as caught:
        loaded(folders["bytes"], tokenizer_class="LlamaTokenizer")
    assert caught.value.found == "TokenizersBackend, of byte-level BPE"
    assert caught.value.expected == "LlamaTokenizer, of SentencePiece BPE"


def test_the_class_that_the_files_name_fits(folders, tmp_path):
    """Files of old name classes that transformers reads as others."""
    for file in folders["bytes"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**written, "tokenizer_class": "LlamaTokenizerFast"}))
    assert loaded(tmp_path, tokenizer_class="LlamaTokenizer")("a").input_ids == loaded(folders["bytes"])("a").input_ids
    with pytest.raises(ModelError, match="another class"):
        loaded(tmp_path, tokenizer_class="CodeLlamaTokenizer")


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [("LamaTokenizer", "LlamaTokenizer"), ("Qwen2Tokeniser", "Qwen2Tokenizer"), ("LlamaForCausalLM", None)],
)
def test_a_class_that_there_is_not(folders, wanted, meant):
    with pytest.raises(ModelError, match=f"transformers has no tokenizer {wanted}") as caught:
        loaded(folders["llama"], tokenizer_class=wanted)
    assert meant is None or caught.value.notes["did you mean"] == meant
    assert "leave it out" in caught.value.fix


# ---- special tokens


def saved_and_read(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


OWN = [
    {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    {"eos": "<s>", "pad": "</s>"},
    {"bos": "</s>", "unk": "</s>"},
    {"eos": "a"},
]
PAIRS = [(name, wanted) for name in ("llama", "word marks", "bytes") for wanted in OWN]


@pytest.mark.parametrize(("tokenizer", "wanted"), [*PAIRS, ("llama", {"eos": "▁the"}), ("bytes", {"eos": "Ġis"})])
def test_they_are_the_tokenizer_s_own_and_travel_with_it(folders, tmp_path, tokenizer, wanted):
    bare = loaded(folders[tokenizer])
    made = loaded(folders[tokenizer], special_tokens=wanted)
    again = saved_and_read(made, tmp_path)
    texts = ["a the</s>bat <s>", "the the a", "<unk>"]
    for one in (made, again):
        assert wanted.items() <= {name.removesuffix("_token"): t for name, t in one.special_tokens_map.items()}.items()
        assert set(wanted.values()) <= set(one.all_special_tokens)
    assert made(texts).input_ids == again(texts).input_ids
    assert made.get_vocab() == bare.get_vocab()
    has_others = any(bare.special_tokens_map.get(f"{name}_token") != token for name, token in wanted.items())
    settings = ModelSettings(name=str(folders[tokenizer]), special_tokens=wanted)
    assert has_other_special_tokens(settings) == has_others
    if not has_others:
        assert made(texts).input_ids == bare(texts).input_ids


@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_takes_white_space_with_it_goes_on_doing_so(tmp_path, special):
    """As Phi-3's <|end|>."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<stop>", rstrip=True, normalized=False, special=special)])
    bare = saved_and_read(tokenizer, tmp_path)
    made = loaded(tmp_path, special_tokens={"eos": "<stop>"})
    text = "it is<stop>  what <stop> it"
    assert made(text).input_ids == bare(text).input_ids
    assert made.decode(made(text).input_ids, skip_special_tokens=True) == "it iswhat it"


def test_what_the_vocabulary_lacks_is_told_at_once(folders):
    with pytest.raises(ModelError, match="2 problems") as caught:
        loaded(folders["gpt2"], special_tokens={"bos": "<s>", "eos": "<|endoftext|>", "pad": "<pad>"})
    told = str(caught.value)
    assert "model.special_tokens.bos: the tokenizer has no token '<s>'" in told
    assert "leave special_tokens.bos out, name one of its own (its bos_token is '<|endoftext|>'), or add it" in told
    assert "(it has no pad_token)" in told
    made = loaded(folders["gpt2"], special_tokens={"pad": "<pad>"}, add_tokens=("<pad>",))
    assert made.pad_token_id == len(made) - 1


@pytest.mark.parametrize("make", [byte_level, word_mark])
def test_a_bos_that_the_tokenizer_writes_is_not_another(tmp_path, make):
    make(CHATML, adds_bos=True).save_pretrained(tmp_path)
    assert loaded(tmp_path, special_tokens={"bos": "<s>", "eos": "<|end|>"}).eos_token == "<|end|>"
    with pytest.raises(ModelError, match="itself puts its bos_token in front of every text") as caught:
        loaded(tmp_path, special_tokens={"bos": "<|end|>"})
    assert (caught.value.where, caught.value.found) == ("model.special_tokens.bos", "<s>")


def test_nor_is_an_eos_that_it_writes(tmp_path):
    tokenizer = LlamaTokenizer(**LLAMA, add_eos_token=True)
    assert tokenizer("a").input_ids[-1] == 2
    tokenizer.save_pretrained(tmp_path)
    config("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="itself puts its eos_token behind every text"):
        loaded(tmp_path, special_tokens={"eos": "<unk>"})


@pytest.mark.parametrize("make", [byte_level, word_mark])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_rows_begin_with_bos_once_and_end_with_the_eos_that_is_set(tmp_path, make, adds_bos):
    make(CHATML, adds_bos=adds_bos).save_pretrained(tmp_path)
    wanted = {"eos": "<|end|>"} | ({} if adds_bos else {"bos": "<|user|>"})
    tokenizer = loaded(tmp_path, special_tokens=wanted)
    tokenizer.chat_template = "{{ bos_token }}" + NEVER_ENDS
    renderer, end = Renderer(tokenizer), tokenizer.convert_tokens_to_ids("<|end|>")
    assert renderer.end_ids == (end,)
    turns = (Message("user", "what is it"), Message("assistant", "it is"))
    ids = renderer.render(Conversation(turns, Origin("rows", 1))).token_ids.tolist()
    assert (ids[0], ids.count(tokenizer.bos_token_id), ids[-1]) == (tokenizer.bos_token_id, 1, end)
    document = renderer.render(Document("it is", Origin("rows", 1))).token_ids.tolist()
    assert document[-1] == end
    assert document.count(tokenizer.bos_token_id) == adds_bos
