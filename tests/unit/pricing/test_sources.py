"""Where prices come from: the guards on litellm's map, an installed newer litellm, and what loading costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wflo_nb.pricing import litellm_map
from wflo_nb.pricing.rates import STANDARD
from wflo_nb.pricing.table import MAP_NAME


def entry(**fields: Any) -> dict[str, Any]:
    return {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, **fields}


def read_one(**fields: Any) -> litellm_map.Entry:
    (one,), refused = litellm_map.read({"model": entry(**fields)})
    assert refused == {}
    return one


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"input_cost_per_token": 0.0032}, "absurd price"),
        ({"output_cost_per_token": 2.5}, "absurd price"),
        ({"cache_creation_input_token_cost": 3}, "absurd price"),
        ({"input_cost_per_audio_token": 0.1}, "absurd price"),
        ({"input_cost_per_request": 25}, "absurd price"),
        ({"input_cost_per_token": 0}, "zero price from a provider that is not free"),
        ({"input_cost_per_token": None}, "no input price"),
        ({"input_cost_per_token": "2"}, "no input price"),
        ({"input_cost_per_token": float("nan")}, "no input price"),
        ({"output_cost_per_token": 0}, "no output price"),
        ({"input_cost_per_token": -1e-6}, "negative price"),
        ({"mode": "image_generation"}, "mode image_generation"),
        ({"litellm_provider": "ollama"}, "free provider, needs no table"),
    ],
)
def test_entries_that_cannot_be_prices_are_left_out(fields: dict[str, Any], reason: str) -> None:
    entries, refused = litellm_map.read({"model": entry(**fields)})
    assert entries == []
    assert refused == {reason: ["model"]}


def test_tiers_and_classes_of_the_map_are_read() -> None:
    one = read_one(
        cache_read_input_token_cost=1e-7,
        cache_creation_input_token_cost=1.25e-6,
        cache_creation_input_token_cost_above_1hr=2e-6,
        input_cost_per_token_above_200k_tokens=2e-6,
        output_cost_per_token_above_200k_tokens=3e-6,
        input_cost_per_token_priority=2e-6,
        output_cost_per_token_priority=4e-6,
        output_cost_per_reasoning_token=5e-6,
        input_cost_per_audio_token=9e-6,
        cache_read_input_audio_token_cost=3e-7,
        cache_read_input_image_token_cost=2e-7,
        cache_read_input_audio_token_cost_priority=8e-7,
        max_output_tokens=4096,
    )
    short, long = one.card.tiers[STANDARD]
    assert short[:7] == (0, 1_000_000, 2_000_000, 100_000, 1_250_000, 2_000_000, 5_000_000)
    assert (short.media_in, short.media_read) == (9_000_000, 300_000)
    assert long[:3] == (200_000, 2_000_000, 3_000_000)
    assert long.write == 2_500_000, "a class the map forgot for a tier keeps its proportion to the input"
    assert one.card.tiers["priority"][0][:4] == (0, 2_000_000, 4_000_000, 200_000)
    assert one.card.tiers["priority"][0].media_read == 800_000
    assert (one.max_output, one.max_input) == (4096, None)


def test_bands_of_input_sizes_are_read() -> None:
    bands = [
        {"range": [0, 256000.0], "input_cost_per_token": 5e-8, "output_cost_per_token": 4e-7},
        {"range": [256000.0, 1000000.0], "input_cost_per_token": 2.5e-7, "output_cost_per_token": 2e-6},
    ]
    (one,), _ = litellm_map.read({"dashscope/qwen-flash": {"litellm_provider": "dashscope", "mode": "chat", "tiered_pricing": bands}})
    assert [row[:3] for row in one.card.tiers[STANDARD]] == [(0, 50_000, 400_000), (256_000, 250_000, 2_000_000)]


def test_a_free_part_of_a_paid_call_is_taken_for_a_gap() -> None:
    assert read_one(cache_creation_input_token_cost=0.0).card.tiers[STANDARD][0].write is None


def test_speed_and_regions_multiply() -> None:
    one = read_one(provider_specific_entry={"us": 1.1, "fast": 2.0})
    assert one.card.uplift == 1100
    assert one.card.tiers["fast"][0][:3] == (0, 2_000_000, 4_000_000)


@pytest.mark.parametrize(
    ("key", "litellm_provider", "expected"),
    [
        ("gpt-4o", "openai", ("openai", "gpt-4o", False)),
        ("azure/eu/gpt-4o", "azure", ("azure", "gpt-4o", True)),
        ("bedrock/us-east-1/anthropic.claude-v1", "bedrock", ("bedrock", "anthropic.claude-v1", True)),
        ("gemini/gemini-2.5-pro", "gemini", ("google", "gemini-2.5-pro", False)),
        ("vertex_ai/claude-x@20250101", "vertex_ai-anthropic_models", ("google", "claude-x@20250101", False)),
        ("together_ai/meta-llama/Llama-3", "together_ai", ("together", "meta-llama/llama-3", False)),
    ],
)
def test_keys_of_the_map_become_ids_of_the_table(key: str, litellm_provider: str, expected: tuple[str, str, bool]) -> None:
    (one,), _ = litellm_map.read({key: entry(litellm_provider=litellm_provider)})
    assert (one.provider, one.model, one.regional) == expected


def run(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-W", "always", "-c", f"import sys\nsys.path.insert(0, {str(path)!r})\n{code}" if path else code]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)


def installed_litellm(folder: Path, version: str, text: str) -> Path:
    (folder / "litellm").mkdir(parents=True)
    (folder / "litellm" / "__init__.py").write_text("raise RuntimeError('litellm was imported')\n")
    (folder / "litellm" / MAP_NAME).write_text(text)
    (folder / f"litellm-{version}.dist-info").mkdir()
    (folder / f"litellm-{version}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: litellm\nVersion: {version}\n")
    return folder


FIND = """
from wflo_nb.model import Usage
from wflo_nb.pricing.book import PriceBook
book = PriceBook()
for provider, model in [("openai", "gpt-4o"), ("openai", "gpt-next"), ("groq", "llama-3.1-8b-instant")]:
    try:
        price = book.find(provider, model)
        print(model, price.source, price.cost(Usage(1000, 0)).nano_usd, price.upper_bound(1000, 0), price.max_output_tokens)
    except LookupError:
        print(model, "unknown")
assert "litellm" not in sys.modules and "genai_prices" not in sys.modules
"""
NEWER = {
    "gpt-4o": entry(input_cost_per_token=8e-6, output_cost_per_token=2e-5, max_output_tokens=99_999),
    "gpt-next": entry(),
    "broken": {"litellm_provider": 7, "mode": "chat", "input_cost_per_token": "x"},
}


def test_a_newer_installed_litellm_adds_its_map_without_being_imported(tmp_path: Path) -> None:
    done = run(FIND, installed_litellm(tmp_path, "9.9.9", json.dumps(NEWER)))
    assert done.returncode == 0, done.stderr
    known, new, other = done.stdout.splitlines()
    assert known.startswith("gpt-4o genai-prices") and known.endswith(" 2500000 8000000 99999"), "it raises the bound, not the bill"
    assert new == "gpt-next litellm 9.9.9 1000000 1000000 None"
    assert "unknown" not in other


@pytest.mark.parametrize("version", ["1.0.0", "1.82.7", "1.107.1"])
def test_an_older_or_known_bad_litellm_is_not_read(tmp_path: Path, version: str) -> None:
    done = run(FIND, installed_litellm(tmp_path, version, json.dumps(NEWER)))
    assert done.returncode == 0, done.stderr
    assert "gpt-next unknown" in done.stdout
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("text", ["{not json", "[1, 2]", "{}", '{"gpt-next": 5}'])
def test_a_map_that_cannot_be_read_costs_one_warning(tmp_path: Path, text: str) -> None:
    done = run(FIND + FIND, installed_litellm(tmp_path, "9.9.9", text))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WfloWarning") == 1
    assert "gpt-4o genai-prices" in done.stdout and "gpt-next unknown" in done.stdout


def test_the_table_is_read_at_the_first_question_and_not_at_import() -> None:
    code = """
import sys, wflo_nb, wflo_nb.pricing.book as book, wflo_nb.pricing.table as table
assert table._loaded is None
book.PriceBook().declare("mine", input=1, output=1)
assert table._loaded is None
book.PriceBook().find("openai", "gpt-4o")
assert table._loaded is not None
assert not {"genai_prices", "litellm", "pydantic", "pandas", "sqlalchemy"} & set(sys.modules)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_the_table_is_small_and_says_its_sources() -> None:
    path = Path(litellm_map.__file__).with_name("prices.json")
    data = json.loads(path.read_text())
    assert path.stat().st_size < 1_000_000
    assert [source["name"] for source in data["sources"]] == ["genai-prices", "litellm"]
    assert all(source["version"] and source["date"] for source in data["sources"])


def test_the_count_of_models_can_be_asked_for() -> None:
    done = subprocess.run([sys.executable, "-m", "wflo_nb.pricing"], capture_output=True, text=True, check=True, timeout=60)
    assert "prices by provider and model id" in done.stdout
    one = subprocess.run(
        [sys.executable, "-m", "wflo_nb.pricing", "openai", "gpt-4o"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "input 2.5, output 10" in one.stdout
