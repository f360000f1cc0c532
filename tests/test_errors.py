import inspect

import pytest

from clapkit import errors
from clapkit.errors import ClapkitError, UnknownNameError


def test_every_error_is_a_clapkit_error_and_stands_in_the_drawing() -> None:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]
    assert all(issubclass(error, ClapkitError) for error in classes)
    assert errors.__doc__ is not None
    assert all(error.__name__ in errors.__doc__ for error in classes)


def test_an_unknown_name_offers_the_closest_and_lists_all() -> None:
    error = UnknownNameError("loss", "svrr", ["triplet", "svr"], hint="see the docs")
    assert str(error) == "unknown loss 'svrr': did you mean 'svr'? known: svr, triplet; see the docs"
    assert str(UnknownNameError("run", "x", [])) == "unknown run 'x': known: none"


@pytest.mark.parametrize("name", ["", "zzz"])
def test_nothing_close_offers_nothing(name: str) -> None:
    assert "did you mean" not in str(UnknownNameError("loss", name, ["infonce"]))
