"""The local broker's life, and the topics on it."""

from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from downstack.local.kafka import LocalKafka
from downstack.local.layout import DataFolderVersionError, LocalError

from services.kit.errors import DownstackError, Reason
from services.kit.events.topics import TOPICS, WORKERS, ensure_topics

JARS = Path(__file__).resolve().parents[3] / ".tools" / "kafka" / "libs"


async def test_topics_are_made_once_with_their_settings(kafka: LocalKafka) -> None:
    await ensure_topics(kafka.bootstrap)
    await ensure_topics(kafka.bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        described = {topic["topic"]: topic for topic in await admin.describe_topics([topic.name for topic in TOPICS])}
    finally:
        await admin.close()

    for topic in TOPICS:
        assert len(described[topic.name]["partitions"]) == topic.partitions
    assert "compact" in WORKERS.cleanup


async def test_a_topic_that_nobody_declared_is_not_made(kafka: LocalKafka) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        (described,) = await admin.describe_topics(["t.misspelt"])
        assert described["error_code"] == 3
        assert "t.misspelt" not in await admin.list_topics()
    finally:
        await admin.close()


async def test_no_broker_is_a_dependency_that_is_unavailable() -> None:
    with pytest.raises(DownstackError) as caught:
        await ensure_topics("127.0.0.1:9", timeout_s=2)

    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE


def test_starting_again_finds_the_running_broker(kafka: LocalKafka, short_tmp: Path) -> None:
    again = LocalKafka(short_tmp / "kafka", jars_dir=JARS)
    again.start()

    assert again.pid == kafka.pid
    assert again.bootstrap == kafka.bootstrap


def test_missing_java_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(LocalError, match="Java is missing, and the Kafka broker runs on it: install a Java 17"):
        LocalKafka(tmp_path / "k", jars_dir=JARS).start()
    assert not (tmp_path / "k").exists()


def test_missing_jars_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"jars are not in .*make setup"):
        LocalKafka(tmp_path / "k", jars_dir=tmp_path).start()


def test_a_folder_of_a_newer_kafka_is_refused(tmp_path: Path) -> None:
    (tmp_path / "KAFKA_VERSION").write_text("99.0\n")

    with pytest.raises(DataFolderVersionError, match=r"belongs to Kafka 99\.0"):
        LocalKafka(tmp_path, jars_dir=JARS).start()


def test_a_port_in_use_is_one_sentence(kafka: LocalKafka, tmp_path: Path) -> None:
    port = int(kafka.bootstrap.rpartition(":")[2])
    other = LocalKafka(tmp_path / "k", jars_dir=JARS, port=port)

    with pytest.raises(LocalError, match=f"port {port} is in use"):
        other.start()
    assert other.pid is None
