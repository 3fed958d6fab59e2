"""What a plan tells of a model of the hub by its files' headers; a hub is made of what its client would answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from tunesmith.models.settings import ModelSettings
from tunesmith.plan import headers

MODEL = ModelSettings(name="someone/something", revision="v2")
FILES = {"model-1.safetensors": 6_000_000_000, "model-2.safetensors": 2_000_000_000, "README.md": 5}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub with two files of weights, of which `here` lie in the cache."""
    state: dict[str, Any] = {"counts": {"BF16": 4_000_000_000}, "here": set(), "asked": []}

    class Api:
        def get_safetensors_metadata(self, name: str, revision: str | None) -> Any:
            state["asked"].append((name, revision))
            if state["counts"] is None:
                raise OSError("cut off")
            weights = {f"{number}.weight": file for number, file in enumerate(FILES) if file != "README.md"}
            return SimpleNamespace(weight_map=weights, parameter_count=state["counts"])

        def model_info(self, name: str, revision: str | None, files_metadata: bool) -> Any:
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f, size=size) for f, size in FILES.items()])

    def cached(name: str, file: str, revision: str | None) -> str | None:
        return f"/cache/{file}" if file in state["here"] else None

    monkeypatch.setattr(headers, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    return state


def test_what_is_to_be_fetched_is_told_of_the_version_that_is_trained(answering: dict[str, Any]) -> None:
    (told,) = headers.of_hub(MODEL, 4_000_000_000)[:1]
    assert told == "on the hub 4,000,000,000 numbers in BF16: 8.0 GB to fetch"
    assert answering["asked"] == [("someone/something", "v2")]
    answering["here"] = {"model-1.safetensors"}
    assert headers.of_hub(MODEL, 4_000_000_000)[0].endswith("2.0 GB to fetch")
    answering["here"] = set(FILES)
    assert headers.of_hub(MODEL, 4_000_000_000) == ["on the hub 4,000,000,000 numbers in BF16: all of it is here"]


@pytest.mark.parametrize(
    ("counts", "parameters", "odd"),
    [
        ({"BF16": 1000}, 1000, False),
        ({"BF16": 1003}, 1000, False),
        ({"BF16": 1100}, 1000, True),
        ({"BF16": 500, "F32": 500}, 1000, False),
        ({"U8": 500, "BF16": 40}, 1000, False),
        ({"BF16": 1100}, None, False),
    ],
)
def test_files_that_hold_another_model_than_the_config_makes_are_named(
    answering: dict[str, Any], counts: dict[str, int], parameters: int | None, odd: bool
) -> None:
    answering.update(counts=counts, here=set(FILES))
    assert any("its files hold" in line for line in headers.of_hub(MODEL, parameters)) == odd


def test_a_disk_that_is_too_small_is_named(answering: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers.shutil, "disk_usage", lambda folder: SimpleNamespace(free=7_999_999_999))
    assert "HF_HOME" in headers.of_hub(MODEL, None)[-1]
    monkeypatch.setattr(headers.shutil, "disk_usage", lambda folder: SimpleNamespace(free=8_000_000_000))
    assert "HF_HOME" not in headers.of_hub(MODEL, None)[-1]


def test_neither_a_folder_nor_a_hub_that_is_away_is_asked(
    answering: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    assert headers.of_hub(ModelSettings(name=str(tmp_path)), 1) == []
    answering["counts"] = None
    assert headers.of_hub(MODEL, 1) == ["the hub's headers of someone/something were not read (OSError)"]
    monkeypatch.setattr(headers, "hub_answers", lambda: False)
    assert headers.of_hub(MODEL, 1) == []
