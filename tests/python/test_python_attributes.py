"""What a span says: attribute values of every type, however odd."""

from __future__ import annotations

from program import Program
from sink import Scalar, Sink


def attributes(program: Program, sink: Sink, code: str) -> dict[str, dict[str, Scalar]]:
    """The attributes of each span that a program makes, by the span's name."""
    program.run(code)
    assert len({span.name for span in sink.spans}) == len(sink.spans)
    return {span.name: span.attributes for span in sink.spans}


def test_text_whole_numbers_floats_and_truth_values_stay_what_they_are(
    program: Program, sink: Sink
) -> None:
    found = attributes(
        program,
        sink,
        """
        class Text(str): pass
        class Like:
            def __init__(self, value): self.value = value
            def __index__(self): return self.value
        class LikeFloat:
            def __float__(self): return 0.25

        with span("values", attributes={
            "text": "ünï ¢ødé ✓ 𝒳", "empty": "", "nul": "a\\0b", "subclass": Text("t"),
            "int": 7, "negative": -1, "largest": 2**63 - 1, "smallest": -2**63,
            "float": 0.1, "infinite": float("inf"), "true": True, "false": False,
            "numpy's integer": Like(5), "numpy's float": LikeFloat(),
        }):
            pass
        """,
    )
    assert found["values"] == {
        "text": "ünï ¢ødé ✓ 𝒳",
        "empty": "",
        "nul": "a\0b",
        "subclass": "t",
        "int": 7,
        "negative": -1,
        "largest": 2**63 - 1,
        "smallest": -(2**63),
        "float": 0.1,
        "infinite": float("inf"),
        "true": True,
        "false": False,
        "numpy's integer": 5,
        "numpy's float": 0.25,
    }
    types = {key: type(value) for key, value in found["values"].items()}
    assert types["true"] is bool and types["int"] is int and types["float"] is float


def test_any_other_value_becomes_text_and_none_is_left_out(program: Program, sink: Sink) -> None:
    found = attributes(
        program,
        sink,
        """
        class Broken:
            def __str__(self): raise RuntimeError

        with span("odd", attributes={
            "none": None, "list": [1, "a"], "dict": {"k": 1}, "bytes": b"b", "huge": 10**30,
            "surrogates": "a\\ud800b", "broken": Broken(), "type": int, 5: "number", None: "no key",
        }):
            pass
        """,
    )
    assert found["odd"] == {
        "list": "[1, 'a']",
        "dict": "{'k': 1}",
        "bytes": "b'b'",
        "huge": "1" + "0" * 30,
        "surrogates": "a\ufffd\ufffd\ufffdb",
        "broken": "?",
        "type": "<class 'int'>",
        "5": "number",
        "None": "no key",
    }


def test_lists_of_one_type_are_arrays_and_others_text(program: Program, sink: Sink) -> None:
    program.run(
        """
        for odd in ([], [None], ["a", 1], [[1]], [1 << 70]):
            attributes = {"first": ["a", "b"], "one": 1, "odd": odd, "last": (0.5,)}
            with span("lists", attributes=attributes):
                pass
        with span("five", attributes={str(n): [n] for n in range(5)}):
            pass
        """
    )
    written: list[object] = [[], "[None]", "['a', 1]", "[[1]]", f"[{1 << 70}]"]
    assert [span.attributes for span in sink.spans] == [
        *({"first": ["a", "b"], "one": 1, "odd": odd, "last": [0.5]} for odd in written),
        {str(n): [n] for n in range(5)},
    ]


def test_any_mapping_is_taken_and_what_is_none_is_let_go(program: Program, sink: Sink) -> None:
    found = attributes(
        program,
        sink,
        """
        import collections, types

        class Broken(dict):
            def items(self): raise RuntimeError

        class Lying(collections.UserDict):
            def items(self): return [("a",), 5, ("b", 2)]

        odd = {
            "proxy": types.MappingProxyType({"a": 1}), "user": collections.UserDict(a=1),
            "default": collections.defaultdict(int, a=1), "broken": Broken(a=1),
            "none": None, "list": [("a", 1)], "text": "a", "number": 5,
        }
        for name, given in odd.items():
            with span(name, attributes=given):
                action("also here", name, given)
        """,
    )
    one: dict[str, Scalar] = {"a": 1}
    assert found == {
        "proxy": one,
        "user": one,
        "default": one,
        "broken": one,
        "none": {},
        "list": {},
        "text": {},
        "number": {},
    }


def test_the_last_value_of_a_key_counts(program: Program, sink: Sink) -> None:
    found = attributes(
        program,
        sink,
        """
        with span("set", attributes={"a": 1, "b": 1}) as open:
            open.set_attribute("a", 2)
            open.set_attribute("a", 3)
            open.set_attribute("b", None)
            open.set_attribute(5, [1])
        open.set_attribute("late", 1)
        """,
    )
    assert found["set"] == {"a": 3, "b": 1, "5": [1]}


def test_a_value_may_use_the_span_while_it_becomes_text(program: Program, sink: Sink) -> None:
    found = attributes(
        program,
        sink,
        """
        class Nosy:
            def __str__(self):
                open.set_attribute("nosy", True)
                given.clear()
                action("while it becomes text", "r")
                return "seen"

        class Failure(Exception):
            def __str__(self):
                open.set_attribute("failed", True)
                return "told"

        given = {}
        open = span("nosy")
        given.update({"value": Nosy(), "other": 1})
        with open:
            open.set_attribute("value", Nosy())
        given.update({n: Nosy() for n in range(100)})
        with span("changed", attributes=given):
            pass
        open = span("failing")
        try:
            with open:
                raise Failure
        except Failure:
            pass
        """,
    )
    assert found["nosy"] == {"nosy": True, "value": "seen"}
    assert found["changed"] == {str(n): "seen" for n in range(100)}
    assert found["failing"] == {"failed": True, "error.type": "Failure"}
    assert [s.message for s in sink.spans if s.status == "ERROR"] == ["told"]


def test_long_texts_are_cut_between_characters_and_too_many_attributes_are_left_out(
    program: Program, sink: Sink
) -> None:
    found = attributes(
        program,
        sink,
        """
        with span("long", attributes={"value": "€" * 100_000, "k" * 5_000: 1}):
            pass
        with span("many", attributes={f"key {n}": n for n in range(1_000)}):
            pass
        """,
    )
    assert found["long"] == {"value": "€" * (16 * 1024 // 3), "k" * 1024: 1}
    assert found["many"] == {f"key {n}": n for n in range(128)}
