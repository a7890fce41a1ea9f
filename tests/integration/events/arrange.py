"""The types of what the event tests arrange."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from services.kit.events.consumer import EventConsumer
from services.kit.events.event import Event
from services.kit.events.outbox import Outbox
from services.kit.events.topics import Topic

MakeTopic = Callable[..., Awaitable[Topic]]
MakeEvent = Callable[..., Event]
MakeConsumer = Callable[..., EventConsumer]
Produce = Callable[..., Awaitable[None]]
ReadTopic = Callable[..., Awaitable[list[Any]]]
OpenOutbox = Callable[..., AbstractAsyncContextManager[Outbox]]
Running = Callable[[Callable[[], Awaitable[None]]], AbstractAsyncContextManager[None]]
