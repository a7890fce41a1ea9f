"""The worker's process."""

from services.kit.run import run_service
from services.worker.settings import WorkerSettings
from services.worker.wiring import wire


def main() -> None:
    """Runs a worker until a signal."""
    run_service("worker", WorkerSettings, wire)


if __name__ == "__main__":
    main()
