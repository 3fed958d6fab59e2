"""What the hub may answer, each told in one sentence that says what to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from tunesmith.errors import ModelError
from tunesmith.models import load
from tunesmith.models.settings import ModelSettings


def refused(kind, status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("the hub's own words", response=response)


@pytest.mark.parametrize(
    ("error", "said", "remedy"),
    [
        (refused(GatedRepoError, 403), "owner/model is gated on the hub", "accept its terms"),
        (refused(RepositoryNotFoundError, 404), "the hub has no .* owner/model", "check the id"),
    ],
)
def test_a_model_that_the_hub_does_not_give(monkeypatch, error, said, remedy):
    def not_given(*_, **__):
        raise OSError("cannot load the tokenizer") from error  # as transformers wraps it

    monkeypatch.setattr(load, "_check_name", lambda *_: None)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", not_given)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", not_given)
    with pytest.raises(ModelError, match=said) as caught:
        load.load_tokenizer(ModelSettings(name="owner/model"))
    assert remedy in str(caught.value)
