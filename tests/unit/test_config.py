from __future__ import annotations

from pathlib import Path

import pytest

from wflo_nb import config
from wflo_nb.errors import ConfigurationError


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    got = config.load({"WFLO_STORE": "x.db", "WFLO_STATE_DIR": str(tmp_path), "WFLO_TEAM": "research", "WFLO_NB": "static"})
    assert (got.store, got.state_dir, got.team, got.card) == ("x.db", tmp_path, "research", "static")


def test_defaults_stand_where_nothing_is_set() -> None:
    assert config.load({}) == config.Settings()


@pytest.mark.parametrize("name", ["WFLO_NB", "WFLO_UNKNOWN_MODELS", "WFLO_SERVICE_TIER", "WFLO_TELEMETRY"])
def test_value_that_is_not_understood_names_the_choices(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}='maybe' is not understood. Use one of"):
        config.load({name: "maybe"})


def test_gateways_are_hosts_and_their_providers() -> None:
    told = config.load({"WFLO_GATEWAYS": " LLM.example.org=openai, claude.example.org = anthropic ,"}).gateways
    assert told == (("llm.example.org", "openai"), ("claude.example.org", "anthropic"))


@pytest.mark.parametrize("told", ["openai", "=openai", "host=", "a=b=c", "https://x=openai"])
def test_gateway_without_a_host_or_a_provider_says_how_to_write_one(told: str) -> None:
    with pytest.raises(ConfigurationError, match="host=provider"):
        config.load({"WFLO_GATEWAYS": told})


def test_state_folder_is_private(tmp_path: Path) -> None:
    folder = config.state_dir(config.Settings(state_dir=tmp_path / "a" / "b"))
    assert folder.stat().st_mode & 0o077 == 0
