"""Dictionaries that keep their newest items."""

from flora_async._bounded_dict import BoundedDict


def test_the_oldest_item_is_removed() -> None:
    """A dictionary of two items keeps the two newest."""
    kept: BoundedDict[str, int] = BoundedDict(2)
    for number, name in enumerate("abc"):
        kept[name] = number
    assert kept == {"b": 1, "c": 2}


def test_an_item_that_is_set_again_keeps_its_age() -> None:
    """An update removes no item and makes none younger."""
    kept: BoundedDict[str, int] = BoundedDict(2)
    kept["a"], kept["b"] = 1, 2
    kept["a"] = 3
    assert kept == {"a": 3, "b": 2}
    kept["c"] = 4
    assert kept == {"b": 2, "c": 4}
