"""Shares and their tests, against values worked out by hand."""

from math import comb

import pytest

from neurflow_engine.shares import Share, holm, p_larger, share_interval


def wilson(share: float, n: int) -> tuple[float, float]:
    z = 1.959964
    centre, reach = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)


def test_a_share_has_the_interval_of_wilson():
    assert share_interval(8, 10) == pytest.approx(wilson(0.8, 10), abs=1e-6)
    assert Share(8, 10).interval == share_interval(8, 10)
    assert share_interval(0, 10)[0] == 0
    assert share_interval(10, 10)[1] == 1


def test_growth_is_tested_on_one_side():
    # 3 of 4 after 1 of 4: of the comb(8, 4) ways to deal 4 marked images, those with 3 or 4 of them after
    assert p_larger(Share(1, 4), Share(3, 4)) == pytest.approx((comb(4, 3) * comb(4, 1) + 1) / comb(8, 4))
    assert p_larger(Share(3, 4), Share(1, 4)) > 0.9
    assert p_larger(Share(2, 4), Share(2, 4)) > 0.5
    assert p_larger(Share(10, 1000), Share(80, 1000)) < 1e-9


def test_p_values_are_corrected_for_their_number():
    # Holm: 0.01 * 3, then 0.03 * 2, then 0.04 * 1, never below the one before
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}
