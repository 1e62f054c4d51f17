"""Events as Python objects: classes, fields, matching, equality, pickling."""

import copy
import json
import pickle

import pytest

import turnstream as ts
from turnstream import _native


def event_of(kind: str, **fields: object) -> ts.Event:
    made = _native.EVENT_TYPES[kind](**fields)
    assert isinstance(made, ts.Event)
    return made


@pytest.mark.parametrize("kind", sorted(_native.EVENT_TYPES))
def test_every_type_has_a_class_that_is_public(kind: str) -> None:
    name = "".join(part.capitalize() for part in kind.split("_"))
    assert getattr(ts, name) is _native.EVENT_TYPES[kind]
    made = event_of(kind)
    assert made.type == kind
    assert type(made).__name__ == name
    names: tuple[str, ...] = getattr(made, "__match_args__", ())
    assert all(hasattr(made, name) for name in names)


@pytest.mark.parametrize("kind", sorted(_native.EVENT_TYPES))
def test_every_type_survives_json_pickle_and_copy(kind: str) -> None:
    made = event_of(kind, session="s", turn=2, round=1, time=5, seq=7, more={"a": [1, None, "é"]})
    assert pickle.loads(pickle.dumps(made)) == made or made.seq is None
    again = ts.Event.from_json(made.json())
    assert again.to_dict() == made.to_dict() == json.loads(made.json())
    assert type(again) is type(made)
    assert copy.copy(made) is made
    assert copy.deepcopy(made) is made
    assert made.extra == {"more": {"a": [1, None, "é"]}}
    assert "\n" not in made.json()


def test_events_match_by_class_and_field() -> None:
    match ts.TextDelta(message_id="m", text="Hi"):
        case ts.TextDelta(text=text):
            assert text == "Hi"
        case _:
            pytest.fail("did not match")
    match ts.TextDelta(message_id="m", text="Hi"):
        case ts.TextDelta("m", text):
            assert text == "Hi"
        case _:
            pytest.fail("did not match by position")


def test_equality_is_of_content() -> None:
    one, two = ts.TextDelta(text="a", seq=1), ts.TextDelta(text="a", seq=1)
    assert one == two
    assert hash(one) == hash(two)
    assert one != ts.TextDelta(text="b", seq=1)
    assert one != ts.ReasoningDelta(text="a", seq=1)
    assert one != "a"


def test_the_wire_form_is_flat_and_headed() -> None:
    wire = ts.TextDelta(message_id="m", text="Hi", session="s", turn=1, round=2, time=3, seq=4).to_dict()
    assert wire == {
        "type": "text_delta",
        "seq": 4,
        "session": "s",
        "turn": 1,
        "round": 2,
        "time": 3,
        "message_id": "m",
        "text": "Hi",
    }
    assert list(wire)[:6] == ["type", "seq", "session", "turn", "round", "time"]


def test_a_repr_says_what_it_is() -> None:
    assert repr(ts.TextDelta(text="Hi", seq=3)) == "TextDelta(seq=3, message_id='', text='Hi')"


def test_fields_are_read_only() -> None:
    with pytest.raises(AttributeError):
        ts.TextDelta(text="a").text = "b"  # type: ignore[misc]


def test_wrong_fields_say_which() -> None:
    with pytest.raises(ts.PayloadError, match=r"text_delta\.text: expected a string") as error:
        ts.TextDelta(text=5)
    assert error.value.code == "bad_payload"
    with pytest.raises(ts.PayloadError, match="unknown event type"):
        ts.Event.from_json('{"type": "nope"}')
    with pytest.raises(ts.PayloadError):
        ts.Event.from_json("[" * 100_000)
    with pytest.raises(TypeError):
        ts.Event()


def test_numbers_beyond_64_bits_keep_their_digits() -> None:
    seed = 123456789012345678901234567890
    assert ts.Custom(name="x", data={"seed": seed}).data == {"seed": seed}
