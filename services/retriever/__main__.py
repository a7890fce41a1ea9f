"""Run the retriever: `downstack-retriever`, or `python -m services.retriever`."""

from services.kit.run import run_service
from services.retriever.settings import RetrieverSettings
from services.retriever.wiring import wire


def main() -> None:
    """Serve until a signal."""
    run_service("retriever", RetrieverSettings, wire)


if __name__ == "__main__":
    main()
