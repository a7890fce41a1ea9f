"""Runs the router."""

from services.kit.run import run_service
from services.router.settings import RouterSettings
from services.router.wiring import wire


def main() -> None:
    run_service("router", RouterSettings, wire)


if __name__ == "__main__":
    main()
