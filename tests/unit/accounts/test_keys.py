"""API keys as strings."""

import pytest

from services.kit.accounts.keys import digest_of, generate_key, parse_key


def test_a_generated_key_has_its_public_part_and_32_random_bytes() -> None:
    keys = [generate_key() for _ in range(50)]

    assert all(parse_key(key.whole) == key for key in keys)
    assert len({key.whole for key in keys}) == len({key.key_id for key in keys}) == 50
    assert all(len(key.whole) == len("ds_live_") + 8 + 1 + 43 for key in keys)


def test_a_key_does_not_show_in_a_repr() -> None:
    key = generate_key()

    assert key.whole not in repr(key)
    assert key.key_id in repr(key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ds_live_",
        "ds_live_abcdefgh_" + "a" * 42,
        "ds_live_abcdefgh_" + "a" * 44,
        "ds_live_ABCDEFGH_" + "a" * 43,
        "ds_test_abcdefgh_" + "a" * 43,
        "ds_live_abcdefgh_" + "a" * 43 + "\n",
        "ds_live_abcdefg'_" + "a" * 43,
        "ds_live_abcdefgh_" + "ä" * 43,
    ],
)
def test_what_is_no_key_is_not_parsed(text: str) -> None:
    assert parse_key(text) is None


def test_the_digest_depends_on_every_character_and_on_the_pepper() -> None:
    key = generate_key().whole
    other = key[:-1] + ("A" if key[-1] != "A" else "B")

    digest = digest_of(key, pepper=b"p" * 16)

    assert len(digest) == 32
    assert digest == digest_of(key, pepper=b"p" * 16)
    assert digest not in {digest_of(other, pepper=b"p" * 16), digest_of(key, pepper=b"q" * 16)}
