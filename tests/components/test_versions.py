"""What readers see of the model registry: a real tracking store."""

from __future__ import annotations

import pytest

from components.platform import champion, versions
from components.platform.tracking import Tracking
from model.errors import MissingInputError, UsageError


@pytest.fixture
def version(settings):
    """A registered champion."""
    client = Tracking(settings).client
    client.create_registered_model("mini")
    tags = {champion.RECEIPT_KEY: "f" * 64, "biovlm.export": "exports/e"}
    client.create_model_version("mini", source=str(settings.store / "exports" / "e"), tags=tags)
    client.set_registered_model_alias("mini", "champion", "1")
    return versions.find(settings, "models:/mini@champion")


def test_a_version_is_found_by_alias_and_by_number(settings, version):
    """One test, because opening a tracking store takes seconds."""
    assert (version.name, version.version) == ("mini", "1")
    assert versions.find(settings, "models:/mini/1").tags == version.tags
    (known,) = versions.history(settings, "mini")
    assert known.aliases == ("champion",)
    assert versions.models(settings) == ["mini"]
    assert versions.history(settings, "nothing") == []
    with pytest.raises(MissingInputError, match="did you mean `mini`"):
        versions.find(settings, "models:/minni@champion")
    with pytest.raises(MissingInputError, match="does not exist"):
        versions.find(settings, "models:/mini/7")


@pytest.mark.parametrize(
    "address", ["mini", "models:/mini", "models:/mini@", "models:/mini/x", "models:/../x/1", "models:/a b@c"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="not the address"):
        versions.parse(address)


def test_a_version_that_biovlm_did_not_register_is_a_letter(settings):
    foreign = versions.Version(name="theirs", version="1")
    with pytest.raises(MissingInputError, match="biovlm did not register it"):
        foreign.export(settings)
