"""Tables as text."""

from raymap3r_ros.tables import markdown_table, text_table


def test_columns_of_text_are_aligned():
    lines = [["rule", "ATE"], ["cut3r", "1.5"], [], ["raymap3r", "10.25", "*"]]
    assert text_table(lines, right=[1]).splitlines() == [
        "rule        ATE",
        "cut3r       1.5",
        "",
        "raymap3r  10.25  *",
    ]
    assert text_table(lines[:2]).splitlines() == ["rule   ATE", "cut3r  1.5"]


def test_markdown_has_a_line_below_the_header():
    assert markdown_table([["a", "wide"], ["1", "2"]]).splitlines() == [
        "| a   | wide |",
        "| --- | ---  |",
        "| 1   | 2    |",
    ]
