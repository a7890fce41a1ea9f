"""A Kafka broker on this machine: one KRaft node from the published jars, under Java, on the loopback interface."""

import base64
import contextlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from downstack.local.daemon import Daemon, find, folder_lock, free_port, spawn, wait_until
from downstack.local.layout import DataFolderVersionError, LocalError, claim_folder
from downstack.local.ports import port_is_free

_HOST = "127.0.0.1"
_MIN_JAVA = 17
_JAR = re.compile(r"kafka_[\d.]+-(\d+)\.(\d+)\.[\w.]+\.jar")
# A heap for some hundred events a second, and the compiler that starts fastest.
_JVM = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
_LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")
_FORMAT_TIMEOUT_S = 60
_PROBE_TIMEOUT_S = 1.0

_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    # A misspelt topic is an error, not a new topic.
    "auto.create.topics.enable": "false",
    # One node: everything has one copy.
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # One consumer per group: there is nobody to wait for.
    "group.initial.rebalance.delay.ms": "0",
    # After a kill the broker waits until its own former session is over.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "1000",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "4194304",
}


class LocalKafka:
    """One broker in one data folder.

    `start` may be called again, also on a folder whose broker was killed or is still running. Port 0 takes a free one,
    and this object keeps it. Not for several threads. Raises LocalError with one sentence, DataFolderVersionError for
    a folder that a newer Kafka wrote.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        jars_dir: Path,
        port: int = 0,
        properties: Mapping[str, str] | None = None,
        jvm: Sequence[str] = (),
    ) -> None:
        self._folder = data_dir.absolute()
        self._jars = jars_dir.absolute()
        self._port = port
        self._extra = dict(properties or {})
        self._jvm = tuple(jvm)
        self._log = self._folder / "kafka.log"
        self._properties = self._folder / "server.properties"
        self._pid_file = self._folder / "kafka.pid"
        self._daemon: Daemon | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients. Raises LocalError before the first start."""
        if not self._port:
            raise LocalError("Kafka is not running.")
        return f"{_HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._daemon.pid if self._daemon is not None else None

    @property
    def log(self) -> Path:
        return self._log

    def running(self) -> bool:
        return self._daemon is not None and self._daemon.running()

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Return when the broker answers."""
        java, version = find_java(), self._jars_version()
        claim_folder(self._folder)
        with folder_lock(self._folder):
            self._check_version(version)
            found = self._find_running()
            if found is not None:
                with contextlib.suppress(LocalError):  # it was about to die
                    self._wait(found, timeout_s)
            if not self.running():
                self._wait(self._launch(java), timeout_s)

    def stop(self, *, grace_s: float = 20.0) -> None:
        """End the broker. Does nothing where none runs."""
        if not self._folder.exists():
            return
        with folder_lock(self._folder):
            daemon = self._daemon or self._find_running()
            if daemon is not None:
                daemon.stop(signal.SIGTERM, grace_s=grace_s)
            self._pid_file.unlink(missing_ok=True)
            self._daemon = None

    def _launch(self, java: str) -> Daemon:
        self._port = self._port or free_port()
        if not port_is_free(self._port):
            raise LocalError(f"Kafka cannot listen: port {self._port} is in use.")
        self._write_properties(controller_port=free_port())
        archive = archive_of(self._jars)
        # An archive of another Java or of other jars is passed over without a word.
        sharing = (
            (f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off") if archive.exists() else ()
        )
        command = [java, *_JVM, *sharing, *_LOGGING, "-cp", f"{self._jars}/*"]
        self._format([*command, "kafka.tools.StorageTool", "format", "--ignore-formatted"])
        daemon = spawn([*command[:1], *self._jvm, *command[1:], "kafka.Kafka", str(self._properties)], log=self._log)
        self._pid_file.write_text(f"{daemon.pid}\n")
        return daemon

    def _wait(self, daemon: Daemon, timeout_s: float) -> None:
        self._daemon = None
        try:
            wait_until(self._answers, daemon=daemon, log=self._log, name="Kafka", timeout_s=timeout_s)
        except LocalError as error:
            daemon.stop(signal.SIGTERM, grace_s=5)
            raise _in_plain_words(error) from None
        self._daemon = daemon

    def _write_properties(self, *, controller_port: int) -> None:
        broker, controller = f"{_HOST}:{self._port}", f"{_HOST}:{controller_port}"
        properties = {
            **_PROPERTIES,
            **self._extra,
            "listeners": f"BROKER://{broker},CONTROLLER://{controller}",
            "advertised.listeners": f"BROKER://{broker}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(self._folder / "data"),
        }
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def _format(self, command: list[str]) -> None:
        """Give the folder its cluster id; a folder that has one keeps it."""
        data = self._folder / "data"
        if (data / "meta.properties").exists() and (data / "bootstrap.checkpoint").exists():
            return
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        argv = [*command, f"--cluster-id={cluster}", f"--config={self._properties}"]
        done = subprocess.run(  # noqa: S603 - argv is built from our own paths
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_FORMAT_TIMEOUT_S
        )
        self._log.write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise _in_plain_words(LocalError(f"Kafka's folder could not be made: {lines[0] if lines else ''}"))

    def _answers(self) -> bool:
        """Whether the broker answers ApiVersions: it takes connections long before it does."""
        request = struct.pack(">hhih", 18, 0, 1, 9) + b"downstack"
        try:
            with socket.create_connection((_HOST, self._port), timeout=_PROBE_TIMEOUT_S) as connection:
                connection.settimeout(_PROBE_TIMEOUT_S)
                connection.sendall(struct.pack(">i", len(request)) + request)
                return len(connection.recv(4)) == 4
        except OSError:
            return False

    def _find_running(self) -> Daemon | None:
        if not self._pid_file.exists():
            return None
        pid = self._pid_file.read_text().strip()
        daemon = find(int(pid), argument=str(self._properties)) if pid.isdigit() else None
        if daemon is not None:
            listener = re.search(r"^advertised\.listeners=\S+:(\d+)$", self._properties.read_text(), re.MULTILINE)
            assert listener is not None
            self._port = int(listener[1])
        return daemon

    def _jars_version(self) -> tuple[int, int]:
        for jar in self._jars.glob("kafka_*.jar"):
            match = _JAR.fullmatch(jar.name)
            if match is not None:
                return int(match[1]), int(match[2])
        raise LocalError(f"Kafka's jars are not in {self._jars}: run `make setup`, or deploy/kafka/fetch.sh.")

    def _check_version(self, version: tuple[int, int]) -> None:
        marker = self._folder / "KAFKA_VERSION"
        major, _, minor = (marker.read_text().strip() if marker.exists() else "0.0").partition(".")
        if (int(major), int(minor)) > version:
            raise DataFolderVersionError(
                f"The data folder {self._folder} belongs to Kafka {major}.{minor}, this Downstack runs "
                f"{version[0]}.{version[1]}: move it away, or use the newer version."
            )
        marker.write_text(f"{version[0]}.{version[1]}\n")


def archive_of(jars_dir: Path) -> Path:
    """Where the archive of the broker's classes is, if somebody wrote one."""
    return jars_dir.absolute() / "kafka.jsa"


def find_java() -> str:
    """The `java` on the path. Raises LocalError."""
    java = shutil.which("java")
    if java is None:
        raise LocalError(
            f"Java is missing, and the Kafka broker runs on it: install a Java {_MIN_JAVA} runtime "
            f"(Debian: apt-get install openjdk-{_MIN_JAVA}-jre-headless)."
        )
    return java


def _in_plain_words(error: LocalError) -> LocalError:
    if "UnsupportedClassVersionError" in str(error):
        return LocalError(f"The Java that is installed is too old for Kafka: install a Java {_MIN_JAVA} runtime.")
    return error
