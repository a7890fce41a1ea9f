"""What runs inside vLLM's engine process."""

import multiprocessing
import os
from multiprocessing.connection import wait
from threading import Thread

_ORPHANED = 1


class EngineChild:
    """Mixed into vLLM's worker class by its name; its methods are called through `collective_rpc`."""

    def answer(self) -> bool:
        """Says that this process takes calls."""
        return True

    def end_with_parent(self) -> None:
        """Ends this process when the one that started it is gone: a killed worker must leave no engine behind."""
        parent = multiprocessing.parent_process()
        if parent is not None:
            Thread(target=_end_after, args=(parent.sentinel,), name="parent watch", daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(_ORPHANED)
