"""An archive of the broker's classes beside its jars, with which Java starts it in about two thirds of the time.

Run as `python -m downstack.local.kafka_archive JARS_DIR`, once after the jars were fetched.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

from downstack.local.kafka import LocalKafka, archive_of, find_java
from downstack.local.layout import LocalError

# Java writes the archive when the broker ends.
_DUMP_TIMEOUT_S = 120.0


def write_archive(jars_dir: Path) -> Path:
    """Run a broker once and keep the list of what it loaded. Raises LocalError."""
    archive = archive_of(jars_dir)
    fresh = archive.with_suffix(".new")
    archive.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="downstack-kafka-") as folder:
        broker = LocalKafka(Path(folder), jars_dir=jars_dir, jvm=(f"-XX:ArchiveClassesAtExit={fresh}",))
        try:
            broker.start()
        finally:
            broker.stop(grace_s=_DUMP_TIMEOUT_S)
    if not _is_whole(fresh, jars_dir):
        fresh.unlink(missing_ok=True)
        raise LocalError("Java wrote no whole archive of Kafka's classes.")
    fresh.replace(archive)
    return archive


def _is_whole(archive: Path, jars_dir: Path) -> bool:
    """Whether Java can run with it: a truncated one would kill every broker that uses it."""
    if not archive.exists():
        return False
    options = (f"-XX:SharedArchiveFile={archive}", "-XX:+VerifySharedSpaces", "-cp", f"{jars_dir.absolute()}/*")
    tried = subprocess.run(  # noqa: S603 - argv is built from our own paths
        [find_java(), *options, "kafka.tools.StorageTool", "random-uuid"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=_DUMP_TIMEOUT_S,
    )
    return tried.returncode == 0


def main() -> None:
    try:
        archive = write_archive(Path(sys.argv[1]))
    except LocalError as error:
        sys.exit(f"Kafka starts without an archive of its classes: {error}")
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"Kafka: {archive.name} written ({archive.stat().st_size // 1_000_000} MB).\n")


if __name__ == "__main__":
    main()
