"""Entry of the command `downstack`: errors become one sentence and an exit status."""

import signal
import sys

from typer.exceptions import Abort, TyperException

from downstack.cli.app import app
from downstack.cli.output import CommandError, fail
from downstack.errors import ApiError
from downstack.local.layout import LocalError

INTERRUPTED = 130


def main() -> None:
    """Run the command and exit: 0, 1 for what failed, 2 for how it was called, 130 when interrupted."""
    # Whoever ends us politely means what Ctrl-C means: stop what was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = app(prog_name="downstack", standalone_mode=False)
    except TyperException as error:
        status = error.exit_code
        fail(error.format_message(), reason="USAGE")
    except ApiError as error:
        status = 1
        fail(str(error), reason=error.reason, request_id=error.request_id)
    except CommandError as error:
        status = 1
        fail(str(error), reason=error.reason)
    except LocalError as error:
        status = 1
        fail(str(error), reason="LOCAL")
    except (KeyboardInterrupt, Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        status = 0
        sys.stdout = None  # whoever read our output has seen enough
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
