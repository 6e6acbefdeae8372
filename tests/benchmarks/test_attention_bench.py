"""The attention benchmark's own arithmetic, without a model."""

from nulltext.benchmarks.attention import __main__ as attention


def test_the_direct_way_is_timed_on_null_texts_edits_too():
    rows = [
        {"direct_seconds": 1.0, "null_text_seconds": 7.0},
        {"direct_seconds": 2.0},
        {"direct_seconds": 6.0, "null_text_seconds": 9.0},
    ]
    assert attention.times(rows) == {
        "p2p_direct_seconds": 3.0,
        "p2p_direct_seconds_of_these": 3.5,
        "p2p_null_text_seconds": 8.0,
    }
