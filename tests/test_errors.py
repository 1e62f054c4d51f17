"""The errors: one tree, each with a code, the same on the other side of a process's wall."""

import copy
import pickle

import pytest

import turnstream as ts
from turnstream import errors

HARD = [
    errors.SourceError("the connection broke", retryable=True),
    errors.HTTPStatusError("503", status=503, body=b"busy", retry_after="3"),
    errors.StreamTimeout("too long", kind="total"),
]
EASY = [
    getattr(errors, name)("what was seen")
    for name in errors.__all__
    if not any(name == type(one).__name__ for one in HARD)
]


@pytest.mark.parametrize("error", HARD + EASY, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_in_another_process(error: ts.TurnstreamError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert (str(other), other.args, other.code) == (str(error), error.args, error.code)
        assert vars(other) == vars(error)


def test_each_has_a_code_of_its_own_and_one_root() -> None:
    classes = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(one, ts.TurnstreamError) and getattr(ts, one.__name__) is one for one in classes)
    assert len({one.code for one in classes}) == len(classes)
