"""Published gRPC tools work against the running system without our proto files."""

import json
from typing import Any

import pytest

from tests.contract.running import System, Tool

INFERENCE = "downstack.inference.v1.InferenceService"
ADMIN = "downstack.admin.v1.AdminService"
RETRIEVAL = "downstack.retrieval.v1.RetrievalService"
SCHEDULER = "downstack.scheduler.v1.SchedulerService"
LEDGER = "downstack.scheduler.v1.LedgerService"
WORKER = "downstack.worker.v1.WorkerService"
SERVICES = {
    "router": (INFERENCE, ADMIN),
    "retriever": (RETRIEVAL,),
    "scheduler": (SCHEDULER, LEDGER),
    "worker": (WORKER,),
}
# grpcurl exits with this plus the status code.
GRPCURL_STATUS = 64
INVALID_ARGUMENT, NOT_FOUND, UNAUTHENTICATED = 3, 5, 16
# grpc_health_probe's own.
PROBE_FAILED = 3


def spec(system: System, **fields: object) -> str:
    """A small request as JSON."""
    message = {"role": "ROLE_USER", "content": "What is the capital of France?"}
    body = {"model": system.model, "messages": [message], "sampling": {"maxTokens": 8}, **fields}
    return json.dumps({"spec": body})


def documents(text: str) -> list[Any]:
    """The JSON documents that grpcurl prints one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_reflection_lists_every_service(system: System, grpcurl: Tool, service: str) -> None:
    """Reflection v1 and v1alpha are there, and name the services, health included."""
    listed = grpcurl.run("-plaintext", system.address_of(service), "list").split()

    assert set(SERVICES[service]) <= set(listed)
    assert {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    } <= set(listed)


def test_reflection_describes_methods(system: System, grpcurl: Tool) -> None:
    """Describe shows the request and response of a method."""
    shown = grpcurl.run("-plaintext", system.router, "describe", f"{INFERENCE}.GenerateOnce")

    assert "downstack.inference.v1.GenerateOnceRequest" in shown
    assert "downstack.inference.v1.GenerateOnceResponse" in shown


def test_grpcurl_gets_a_whole_answer(system: System, grpcurl: Tool) -> None:
    """GenerateOnce answers with text, exact usage and a cost."""
    key = f"authorization: {system.authorization}"
    called = grpcurl.run("-plaintext", "-H", key, "-d", spec(system), system.router, f"{INFERENCE}/GenerateOnce")
    (answer,) = documents(called)

    assert answer["started"]["request_id"].startswith("req_")
    assert answer["choices"][0]["text"]
    assert answer["finished"]["usage"]["output_total"] == 8
    assert int(answer["finished"]["cost"]["nano_units"]) > 0


def test_grpcurl_streams_an_answer(system: System, grpcurl: Tool) -> None:
    """Generate streams one Started, then deltas, then one Finished, numbered without a gap."""
    key = f"authorization: {system.authorization}"
    frames = documents(grpcurl.run("-plaintext", "-H", key, "-d", spec(system), system.router, f"{INFERENCE}/Generate"))

    assert [frame.get("sequence", 0) for frame in frames] == list(range(len(frames)))
    assert "started" in frames[0]
    assert "finished" in frames[-1]
    assert all("delta" in frame for frame in frames[1:-1])
    assert frames[0]["started"]["decision"]["reason"]


@pytest.mark.parametrize(
    ("header", "fields", "code", "reason"),
    [
        ("x-nothing: 1", {}, UNAUTHENTICATED, "AUTH_MISSING"),
        ("authorization: Bearer ds_live_aaaaaaaa_" + 43 * "A", {}, UNAUTHENTICATED, "AUTH_INVALID"),
        ("", {"model": "no-such-model"}, NOT_FOUND, "MODEL_NOT_FOUND"),
        ("", {"sampling": {"temperature": 9}}, INVALID_ARGUMENT, "PARAM_OUT_OF_RANGE"),
    ],
)
def test_refusals_carry_code_and_reason(
    system: System, grpcurl: Tool, header: str, fields: dict[str, object], code: int, reason: str
) -> None:
    """A refused call has one status code, and an ErrorInfo that grpcurl can show."""
    header = header or f"authorization: {system.authorization}"
    refused = grpcurl.run(
        *("-plaintext", "-H", header, "-d", spec(system, **fields), system.router, f"{INFERENCE}/GenerateOnce"),
        expect=GRPCURL_STATUS + code,
    )

    assert reason in refused
    assert "google.rpc.ErrorInfo" in refused


def test_ghz_loads_generate_once(system: System, ghz: Tool) -> None:
    """ghz finds the method by reflection and gets 50 good answers with a key in the metadata."""
    report = json.loads(
        ghz.run(
            *("--insecure", "--call", f"{INFERENCE}.GenerateOnce", "-n", "50", "-c", "5", "--connections", "2"),
            *("-m", json.dumps({"authorization": system.authorization}), "-d", spec(system)),
            *("--disable-template-data", "-O", "json", system.router),
        )
    )

    assert report["statusCodeDistribution"] == {"OK": 50}
    assert report["count"] == 50
    assert not report["errorDistribution"]


@pytest.mark.parametrize("service", SERVICES)
def test_health_probe_finds_every_service_serving(system: System, health_probe: Tool, service: str) -> None:
    """The process and each of its services are SERVING; an unknown name is not."""
    address = system.address_of(service)

    for name in ("", *SERVICES[service]):
        health_probe.run("-addr", address, "-service", name)
    health_probe.run("-addr", address, "-service", "no.such.Service", expect=PROBE_FAILED)
