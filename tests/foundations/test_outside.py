"Kinds of values: what each accepts, and the first fault that it names"

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddrobust_nb.foundations.core import InputError
from ddrobust_nb.foundations.outside import (
    MOST_DEPTH,
    Finite,
    Flag,
    Kind,
    ListOf,
    MapOf,
    OrNull,
    Record,
    Text,
    Whole,
    check_plain,
    depth_of,
    parse_json,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (Whole(0), (0, 5, 2**53), (-1, True, False, 1.0, "1", None, [], 2**53 + 1, 10**5000, NAN)),
        (Whole(-2, 2), (-2, 0, 2), (-3, 3, 0.0)),
        (Finite(), (0, -1.5, 1e300, -5), (NAN, INF, -INF, True, "1", None, 10**400)),
        (Finite(0, above=True), (1e-300, 1), (0, 0.0, -1e-300)),
        (Finite(0, 1), (0, 1, 0.5), (-0.001, 1.001)),
        (Text(), ("", "ä", "a" * 10_000), (5, None, b"a", "a" * 10_001, ["a"])),
        (Text(r"[a-z]+", 3), ("abc",), ("", "abcd", "a b", "ABC", "abc\n")),
        (Flag(), (True, False), (0, 1, "true", None)),
        (OrNull(Whole(1)), (None, 1), (0, True, "null")),
        (ListOf(Whole(0), least=1, most=2), ([1], [1, 2]), ([], [1, 2, 3], [1, "2"], (1,), "12", {})),
        (MapOf(Whole(0), Text(r"\w+")), ({}, {"a": 1}), ({"a": "x"}, {"a b": 1}, [], None)),
        (
            Record(dict(a=Whole(0)), dict(b=Flag())),
            ({"a": 1}, {"a": 1, "b": True, "c": 5}),
            ({}, {"a": 1, "b": 1}, []),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_kind_accepts(kind, right, wrong):
    assert not [value for value in right if kind.fault(value, "x")]
    for value in wrong:
        fault = kind.fault(value, "x")
        assert fault and "\n" not in fault and len(fault) < 300, value
    assert not any(Kind().fault(value, "x") for value in (*right, *wrong))


def test_a_fault_is_named_by_its_path():
    kind = Record(dict(spec=Record(dict(mean=ListOf(Finite())))), dict(files=MapOf(Text())))
    assert kind.fault({"spec": {"mean": [0.5, "x"]}}, "it").startswith("spec.mean[1] must be")
    assert kind.fault({"spec": {}}, "it") == "spec.mean is missing"
    assert kind.fault({"spec": {"mean": []}, "files": {"a": 5}}, "it").startswith("files.'a' must be text")
    assert kind.fault({"spec": {}}, "row 3") == "row 3.spec.mean is missing"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**50), 10**50)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_what_python_writes_comes_back(value):
    "The same value and the same types, with characters written out or not"
    for text in (json.dumps(value, ensure_ascii=False), json.dumps(value), json.dumps(value, indent=1)):
        try:
            text.encode()
        except UnicodeEncodeError:
            continue
        try:
            found = parse_json(text)
        except InputError:
            assert depth_of(text.encode()) > MOST_DEPTH or "\\ud" in text
            continue
        assert found == value and repr(found) == repr(value)


@given(st.text(alphabet='[]{}"\\a,:1 ', max_size=60))
def test_depth_is_never_below_that_of_the_value(text):
    "Where a text is JSON, brackets are counted exactly"

    def depth(value):
        if not isinstance(value, (list, dict)):
            return 0
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inner), default=0)

    try:
        value = json.loads(text)
    except ValueError:
        return
    assert depth_of(text.encode()) >= depth(value)


def test_parameters_in_the_limits():
    assert check_plain("options", {"a": [1, {"b": -2.5}], "c": None, "d": object()}) is None
    for value in (2**53 + 1, -INF, NAN, "x" * 5000, [0] * 5000, {"x" * 5000: 1}, [[[[[[[[]]]]]]]]):
        with pytest.raises(InputError, match="^options|^a name in options"):
            check_plain("options", value)
