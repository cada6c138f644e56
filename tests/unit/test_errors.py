"""Groups of errors are told by what is inside them."""

from __future__ import annotations

from visionrl.errors import leaves


def test_the_leaves_of_a_group_are_its_errors_in_order() -> None:
    one, two, three = ValueError("1"), OSError("2"), KeyError("3")
    assert list(leaves(ExceptionGroup("a", [one, ExceptionGroup("b", [two]), three]))) == [one, two, three]
    assert list(leaves(one)) == [one]
