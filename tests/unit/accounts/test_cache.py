"""The bounded memory of verdicts on keys."""

from services.kit.accounts.cache import KeyCache
from services.kit.clock import ManualClock
from services.kit.errors import Reason
from services.kit.identity import Identity


def _identity(key_id: str = "abcdefgh") -> Identity:
    return Identity(tenant_id="t", principal="p", groups=(), scopes=frozenset({"generate"}), key_id=key_id)


def test_a_verdict_is_forgotten_after_its_life() -> None:
    clock = ManualClock()
    cache = KeyCache(life_s=10, clock=clock)
    cache.put(b"good", _identity())
    cache.put(b"bad", Reason.AUTH_INVALID)

    clock.advance(9.9)
    assert cache.get(b"good") == _identity()
    assert cache.get(b"bad") is Reason.AUTH_INVALID

    clock.advance(0.2)
    assert cache.get(b"good") is None
    assert cache.get(b"bad") is None


def test_a_key_that_expires_sooner_is_forgotten_sooner() -> None:
    clock = ManualClock()
    cache = KeyCache(life_s=10, clock=clock)
    cache.put(b"good", _identity(), life_s=1)

    clock.advance(1.0)

    assert cache.get(b"good") is None
    assert len(cache) == 0


def test_a_life_of_zero_remembers_nothing() -> None:
    cache = KeyCache(life_s=0, clock=ManualClock())
    cache.put(b"good", _identity())

    assert cache.get(b"good") is None
    assert len(cache) == 0


def test_a_flood_of_wrong_keys_is_bounded_and_pushes_out_no_right_one() -> None:
    cache = KeyCache(life_s=10, clock=ManualClock(), max_accepted=2, max_refused=3)
    cache.put(b"good", _identity())
    for n in range(100):
        cache.put(str(n).encode(), Reason.AUTH_INVALID)

    assert cache.get(b"good") == _identity()
    assert len(cache) == 4
    assert cache.get(b"99") is Reason.AUTH_INVALID
    assert cache.get(b"0") is None


def test_the_least_recently_used_key_goes_first() -> None:
    cache = KeyCache(life_s=10, clock=ManualClock(), max_accepted=2)
    for name in (b"a", b"b"):
        cache.put(name, _identity())
    cache.get(b"a")
    cache.put(b"c", _identity())

    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None
