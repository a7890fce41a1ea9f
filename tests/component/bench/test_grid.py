"""The measurements that a GPU machine makes, made of a simulated engine whose speed is known."""

from pathlib import Path

import pytest

from bench.serving.grid import Plan, measure_grid
from bench.serving.profile import write_profile
from bench.serving.shapes import SHAPES
from services.kit.clock import SystemClock
from services.kit.models import BUILTIN_SIM, Tokenizer, model_folder
from services.worker.adapters.sim.engine import SimEngine, SimSettings
from services.worker.domain.rates import Rates
from services.worker.domain.sim.core import Shape
from services.worker.profiles import load_profile

TRUE = Rates(
    prefill_base_ms=20.0,
    prefill_ms_per_token=0.5,
    decode_base_ms=20.0,
    decode_ms_per_request=5.0,
    decode_ms_per_context_token=0.02,
)
PLAN = Plan(new_tokens=(16, 128), starts=(0, 128), batches=(1, 4), contexts=(16, 256), repeats=1)


async def test_a_grid_finds_the_speed_of_an_engine_and_its_profile_says_it(tmp_path: Path) -> None:
    """Within what a busy machine adds to each step; the profile is one that the simulated engine takes."""
    shape = Shape(block_size=16, kv_blocks=256, context_tokens=512, max_num_seqs=4, max_num_batched_tokens=512)
    settings = SimSettings(shape=shape, rates=TRUE, model="sim")
    engine = SimEngine(settings, Tokenizer.load(model_folder(BUILTIN_SIM)), clock=SystemClock())
    await engine.start()
    try:
        grid = await measure_grid(engine, PLAN)
    finally:
        await engine.stop()
    assert [(new, start) for new, start, _ in grid.prefills] == [(16, 0), (16, 128), (128, 0), (128, 128)]
    assert len(grid.decodes) == 4
    found = grid.rates()
    assert found.prefill_ms(128) == pytest.approx(TRUE.prefill_ms(128), rel=0.4)
    assert found.decode_ms(4, context_tokens=1000) == pytest.approx(TRUE.decode_ms(4, context_tokens=1000), rel=0.4)
    path = tmp_path / "this-machine.toml"
    sources = dict.fromkeys(("device", "model", "shape", "rates", "price"), 'a "quoted" source')
    write_profile(path, model="sim", spec=engine.spec, rates=found, price=(2.5, "USD"), sources=sources)
    profile = load_profile(str(path))
    assert profile.shape == shape
    assert profile.rates.prefill_ms_per_token == pytest.approx(found.prefill_ms_per_token, rel=0.001)
    assert profile.price_per_hour_nano == 2_500_000_000
    assert profile.sources["rates"] == 'a "quoted" source'


@pytest.mark.parametrize(("name", "billions"), [("llama-3-8b", 8.03), ("llama-3-70b", 70.55)])
def test_a_shape_has_as_many_parameters_as_the_model(name: str, billions: float, tmp_path: Path) -> None:
    """As published; and its folder has a tokenizer."""
    shape = SHAPES[name]
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    shape.write(tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size <= shape.vocab
    assert shape.with_layers(2).parameters < shape.parameters
