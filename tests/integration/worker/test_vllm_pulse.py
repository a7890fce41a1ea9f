"""The signs of life of vLLM's engine, and the internals that they rely on."""

import asyncio
import dataclasses
import inspect

import pytest

from services.worker.adapters.vllm.child import EngineChild
from tests.support.smollm2 import smollm2_folder
from tests.support.worker_rig import Rig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_the_pulse_finds_what_it_relies_on() -> None:
    """Each class, method and attribute of vLLM's that is used to watch and to end its processes."""
    smollm2_folder()  # skips where there is no vLLM
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415
    from vllm.v1.engine.core_client import BackgroundResources, MPClient  # noqa: PLC0415
    from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415
    from vllm.v1.engine.utils import CoreEngineProcManager  # noqa: PLC0415

    assert "engine_manager" in {field.name for field in dataclasses.fields(BackgroundResources)}
    assert "self.resources" in inspect.getsource(MPClient.__init__)
    assert "self.processes" in inspect.getsource(CoreEngineProcManager.__init__)
    assert "self.engine_core" in inspect.getsource(AsyncLLM.__init__)
    assert "self.output_handler" in inspect.getsource(AsyncLLM.__init__)
    assert "timeout" in inspect.signature(AsyncLLM.shutdown).parameters
    assert list(inspect.signature(AsyncLLM.collective_rpc).parameters)[1] == "method"
    assert not issubclass(EngineDeadError, (RuntimeError, ValueError, OSError))
    assert {"answer", "end_with_parent"} <= set(vars(EngineChild))


async def test_an_idle_engine_has_a_pulse(vllm: Rig) -> None:
    """It answers, though it does nothing, and its processes are known."""
    from services.worker.adapters.vllm.engine import VllmEngine  # noqa: PLC0415

    engine = vllm.engine
    assert isinstance(engine, VllmEngine)
    (process,) = engine._llm.engine_core.resources.engine_manager.processes
    assert process.is_alive()
    assert engine._pids == [process.pid]
    assert engine._pulse is not None
    assert await engine._pulse.answers(within_s=10)
    before = engine.stats().pulse
    await vllm.scheduler.until(lambda _: engine.stats().pulse != before, timeout_s=30)
    assert vllm.worker.healthy()


async def test_an_engine_that_does_not_answer_has_none() -> None:
    """Asked within a time, and for as long as it is watched. An error is an answer."""
    smollm2_folder()
    from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415

    from services.worker.adapters.vllm.pulse import Pulse  # noqa: PLC0415

    async def dead() -> None:
        raise EngineDeadError

    async def failing() -> None:
        raise Exception("what the process said")  # noqa: TRY002  vLLM's own way

    assert await Pulse(failing, steps=lambda: 0, pids=[]).answers(within_s=10)
    silent = Pulse(asyncio.Event().wait, steps=lambda: 0, pids=[])
    assert not await silent.answers(within_s=0.01)
    gone = Pulse(dead, steps=lambda: 0, pids=[])
    assert not await gone.answers(within_s=10)
    async with asyncio.timeout(10):
        await gone.run()
    assert gone.count == 0
