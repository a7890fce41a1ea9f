"""Device profiles: what comes with the package can be used, and a bad one is refused in one sentence."""

from pathlib import Path

import pytest

from services.kit.errors import StartupError
from services.worker.domain.sim.virtual import VirtualEngine
from services.worker.profiles import load_profile, profile_names

GOOD = """
model = "m"
[shape]
block_size = 16
kv_blocks = 64
context_tokens = 1024
max_num_seqs = 4
max_num_batched_tokens = 256
[rates]
prefill_base_ms = 1
prefill_ms_per_token = 0.1
prefill_ms_per_pair = 0.0
decode_base_ms = 2.0
decode_ms_per_request = 0.1
decode_ms_per_context_token = 0.0
[price]
per_hour = 0.1
currency = "USD"
[sources]
rates = "made up"
"""


@pytest.mark.parametrize("name", profile_names())
def test_every_packaged_profile_is_usable_and_says_its_sources(name: str) -> None:
    """An engine of it starts, every step takes time, and each group of figures has a source."""
    profile = load_profile(name)
    VirtualEngine(profile.shape, profile.rates)
    assert profile.name == name
    assert profile.rates.prefill_ms(1) > 0
    assert profile.rates.decode_ms(1) > 0
    assert profile.currency == "USD"
    assert {"device", "model", "shape", "rates", "price"} <= {group for group, text in profile.sources.items() if text}


def test_the_profiles_order_devices_as_their_figures_do() -> None:
    """A smaller model is faster on one device, and a faster device with one model."""
    decode = {name: load_profile(name).rates.decode_base_ms for name in profile_names()}
    assert decode["h200-8b"] < decode["h100-8b"] < decode["l40s-8b"]
    assert decode["h100-8b"] < decode["h100-70b"]


def test_a_file_is_a_profile_too(tmp_path: Path) -> None:
    """Its name is the file's; the price is exact."""
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    profile = load_profile(str(path))
    assert (profile.name, profile.price_per_hour_nano, profile.shape.kv_blocks) == ("mine", 100_000_000, 64)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(StartupError, match=r"no profile 'h9000': known are .*h100-8b"):
        load_profile("h9000")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[sources]", "[sources", "cannot be read"),
        ("kv_blocks = 64", "", "needs"),
        ("kv_blocks = 64", "kv_blocks = 6.4", "kv_blocks in .shape. is not a number"),
        ("decode_base_ms = 2.0", "decode_base_ms = -2.0", "is not a number of at least 0"),
        ("per_hour = 0.1", 'per_hour = "cheap"', "cannot be read"),
        ('model = "m"', "", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(StartupError, match=complaint):
        load_profile(str(path))
