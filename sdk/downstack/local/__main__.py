"""The detached supervisor: `python -m downstack.local CONFIG_JSON`, started by `downstack up --detach`."""

import sys

from downstack.local.config import LocalConfig
from downstack.local.control import run_here
from downstack.local.layout import LocalError


def main() -> None:
    """Run until a signal to stop. The last line on standard error says why it could not start."""
    try:
        run_here(LocalConfig.from_json(sys.argv[1]), on_change=lambda _: None)
    except LocalError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
