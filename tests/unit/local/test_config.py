from pathlib import Path

import pytest
from downstack.local.config import Engine, LocalConfig, parse_models
from downstack.local.layout import LocalError


def config(**changes: object) -> LocalConfig:
    return LocalConfig(**{"data_dir": Path("/data"), "engine": Engine.SIM, **changes})  # type: ignore[arg-type]


def test_models_are_read_from_pairs() -> None:
    assert parse_models("a=/x, b=builtin:sim") == {"a": "/x", "b": "builtin:sim"}


@pytest.mark.parametrize("text", ["a", "a=", "=x", "a=x,", "a=x,a=y"])
def test_models_that_cannot_be_read_give_one_sentence(text: str) -> None:
    with pytest.raises(LocalError) as caught:
        parse_models(text)
    assert str(caught.value).startswith("--models")
    assert "\n" not in str(caught.value)


def test_each_engine_has_a_model_of_its_own() -> None:
    assert dict(config().served_models) == {"sim-small": "builtin:sim"}
    assert list(config(models={"mine": "/m"}).served_models) == ["mine"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("workers", 0), ("workers", 17), ("schedulers", 0), ("schedulers", 9), ("port", -1), ("port", 65536)],
)
def test_numbers_out_of_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(LocalError, match=f"--{field} must be"):
        config(**{field: value})


def test_a_config_survives_the_way_to_another_process() -> None:
    asked = config(workers=3, schedulers=2, models={"m": "/m"}, port=1234)
    assert LocalConfig.from_json(asked.to_json()) == asked
