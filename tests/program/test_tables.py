"""Tables of markdown."""

from revtune.program.tables import markdown


def test_the_first_column_is_to_the_left_and_the_others_to_the_right() -> None:
    rows = (row for row in [("GRU", "1.25", ""), ("LSTM", "1.5", "yes")])
    assert markdown(("net", "loss", "best"), rows).splitlines() == [
        "| net | loss | best |",
        "|---|---:|---:|",
        "| GRU | 1.25 |  |",
        "| LSTM | 1.5 | yes |",
    ]
    assert markdown(("net",), []) == "| net |\n|---|"
