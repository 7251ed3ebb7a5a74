"""Rates in printed and stored form."""

import pytest

from raymap3r_ros.rates import rate_text, rounded, significant


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.0811, "0.0811 frames/s (12.3 s a frame)"),
        (0.00012345, "0.000123 frames/s (8100 s a frame)"),
        (0.5, "0.500 frames/s (2.00 s a frame)"),
        (1, "1.00 frames/s"),
        (9.999, "10.0 frames/s"),
        (23.14, "23.1 frames/s"),
        (1234, "1234 frames/s"),
        (0, "0 frames/s"),
    ],
)
def test_rates_have_three_significant_digits(rate, text):
    assert rate_text(rate) == text


def test_stored_rates_keep_their_digits():
    assert [rounded(value) for value in (0.0811234567, 23.1412345, 0.0)] == [0.081123, 23.141, 0.0]
    assert float(significant(0.00012345)) == 0.000123
