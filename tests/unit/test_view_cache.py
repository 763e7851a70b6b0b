"""The views that a tail keeps in memory."""

import pytest

from session_projector.worker.daemon import view_cache
from session_projector.worker.daemon.view_cache import VIEW_BYTES, ViewCache


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> ViewCache:
    """It has room for three views of 1,000 bytes."""
    monkeypatch.setattr(view_cache, "CACHE_BYTES", 3 * (VIEW_BYTES + 1000))
    return ViewCache()


def test_what_is_kept_is_found_by_its_key(cache: ViewCache) -> None:
    cache.keep({"a": "view of a", "b": "view of b"}, [1, 1])

    assert cache.take(["b", "c"]) == {"b": "view of b"}


def test_where_room_is_short_the_views_written_longest_ago_go_first(cache: ViewCache) -> None:
    cache.keep({"a": 1, "b": 1, "c": 1}, [1000, 1000, 1000])
    cache.keep({"a": 2}, [1000])
    cache.keep({"d": 1}, [1000])

    assert cache.take("abcd") == {"a": 2, "c": 1, "d": 1}


def test_a_view_that_grows_takes_the_room_of_others(cache: ViewCache) -> None:
    cache.keep({"a": 1, "b": 1, "c": 1}, [1000, 1000, 1000])
    cache.keep({"c": 2}, [2000 + VIEW_BYTES])

    assert cache.take("abc") == {"b": 1, "c": 2}


def test_the_newest_is_kept_whatever_its_size(cache: ViewCache) -> None:
    cache.keep({"a": 1, "b": 1}, [1000, 1_000_000])
    assert cache.take("ab") == {"b": 1}

    cache.keep({"a": 2}, [1000])
    assert cache.take("ab") == {"a": 2}


def test_what_is_forgotten_leaves_its_room_to_others(cache: ViewCache) -> None:
    cache.keep({"a": 1, "b": 1, "c": 1}, [1000, 1000, 1000])
    cache.forget(["a", "never kept"])
    cache.keep({"d": 1}, [1000])

    assert cache.take("abcd") == {"b": 1, "c": 1, "d": 1}


def test_a_pinned_view_takes_no_room_of_the_others(cache: ViewCache) -> None:
    cache.keep({"giant": 1}, [1_000_000])
    cache.pin("giant")
    cache.keep({"a": 1, "b": 1, "c": 1, "d": 1}, [1000] * 4)
    held = cache.take(["giant", *"abcd"])
    cache.unpin()

    assert held == {"giant": 1, "b": 1, "c": 1, "d": 1}
    assert cache.take(["giant", "d"]) == {"d": 1}


def test_a_pinned_view_that_is_kept_again_or_forgotten_is_no_longer_the_old_one(
    cache: ViewCache,
) -> None:
    cache.keep({"a": 1, "b": 1}, [1000, 1000])
    cache.pin("a")
    cache.keep({"a": 2}, [1000])
    newer = cache.take(["a"])
    cache.pin("b")
    cache.forget(["b"])

    assert newer == {"a": 2}
    assert cache.take(["b"]) == {}
