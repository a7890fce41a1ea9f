"""The LoRA adapters of a worker: which ones requests can name, which ones are in use, and which ones can go."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.kit.errors import DownstackError, Reason


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in a folder.

    Attributes:
        name: What callers say, after the model's name.
        id: The name with the revision of its files, so that other weights never pass for these.
        path: Its folder. It must stay as it is for as long as the adapter is held.
    """

    name: str
    id: str
    rank: int
    path: str


@dataclass(frozen=True, slots=True)
class Held:
    """An adapter that the engine holds. A withdrawn one takes no more leases, and goes with the last one."""

    adapter: Adapter
    running: int
    withdrawn: bool


class Adapters:
    """What is held, by id. Of adapters with one name, only the last one is offered."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[str, Adapter] = {}
        self._offered: dict[str, Adapter] = {}
        self._running: Counter[str] = Counter()

    @property
    def most(self) -> int:
        return self._most

    @property
    def offered(self) -> Sequence[Adapter]:
        """What requests can name, sorted by name."""
        return [adapter for _, adapter in sorted(self._offered.items())]

    @property
    def ids(self) -> frozenset[str]:
        """The ids of what is offered."""
        return frozenset(adapter.id for adapter in self._offered.values())

    def __iter__(self) -> Iterator[Held]:
        offered = self.ids
        for adapter_id, adapter in sorted(self._held.items()):
            yield Held(adapter, self._running[adapter_id], withdrawn=adapter_id not in offered)

    def check_room(self, adapter: Adapter) -> None:
        """Raises DownstackError: METHOD_DISABLED where none can be held, QUOTA_EXCEEDED where no more can."""
        if not self._most:
            raise DownstackError(Reason.METHOD_DISABLED, "This worker was started without room for adapters.")
        if adapter.id not in self._held and len(self._held) >= self._most:
            message = f"This worker holds as many adapters as it can: {self._most}."
            raise DownstackError(Reason.QUOTA_EXCEEDED, message, metadata={"max_adapters": str(self._most)})

    def offer(self, adapter: Adapter) -> None:
        """The engine holds it: requests can name it from now on, and no longer another one by its name."""
        self._held[adapter.id] = adapter
        self._offered[adapter.name] = adapter

    def withdraw(self, name: str) -> Held:
        """Takes no more leases for it. Raises DownstackError ADAPTER_NOT_FOUND."""
        if name not in self._offered:
            raise not_found(name)
        adapter = self._offered.pop(name)
        return Held(adapter, self._running[adapter.id], withdrawn=True)

    def take(self, adapter_id: str) -> None:
        """One more lease uses it."""
        self._running[adapter_id] += 1

    def give_back(self, adapter_id: str) -> None:
        """One lease less does."""
        self._running[adapter_id] -= 1
        if not self._running[adapter_id]:
            del self._running[adapter_id]

    def unused(self) -> list[Adapter]:
        """What can go: withdrawn, and without a lease."""
        return [held.adapter for held in self if held.withdrawn and not held.running]

    def gone(self, adapter: Adapter) -> None:
        """The engine no longer holds it."""
        self._held.pop(adapter.id, None)
        if self._offered.get(adapter.name) == adapter:
            del self._offered[adapter.name]


def not_found(name: str) -> DownstackError:
    """The error for an adapter that nobody holds."""
    return DownstackError(Reason.ADAPTER_NOT_FOUND, f"This worker has no adapter {name}.", metadata={"adapter": name})
