"""What the environment says in numbers, and that children hear the same."""

from __future__ import annotations

import pytest

from components.platform.settings import FEATURE_CACHE_GIB, Settings
from model.errors import ConfigError


@pytest.mark.parametrize(("said", "gib"), [(None, FEATURE_CACHE_GIB), ("0", 0.0), ("1.5", 1.5)])
def test_the_limit_of_the_feature_cache_is_read_and_passed_on(tmp_path, said, gib):
    environment = {"BIOVLM_HOME": str(tmp_path)} | ({"BIOVLM_FEATURE_CACHE_GIB": said} if said is not None else {})
    settings = Settings.from_environment(environment)
    assert settings.feature_cache == tmp_path / "cache" / "features"
    assert settings.feature_cache_bytes == int(gib * 2**30)
    assert Settings.from_environment(settings.for_children()) == settings


@pytest.mark.parametrize("said", ["lots", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused(tmp_path, said):
    with pytest.raises(ConfigError, match="BIOVLM_FEATURE_CACHE_GIB"):
        Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_FEATURE_CACHE_GIB": said})


@pytest.mark.parametrize("said", ["many", "-1", "1.5", "²"])
def test_a_count_of_tries_that_is_none_is_refused(tmp_path, said):
    with pytest.raises(ConfigError, match="BIOVLM_TRIES_BEFORE is"):
        Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_TRIES_BEFORE": said})
