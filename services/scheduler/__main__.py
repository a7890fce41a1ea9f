"""Runs the scheduler."""

from services.kit.run import run_service
from services.scheduler.settings import SchedulerSettings
from services.scheduler.wiring import wire


def main() -> None:
    run_service("scheduler", SchedulerSettings, wire)


if __name__ == "__main__":
    main()
