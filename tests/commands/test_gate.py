"""What continuous integration asks of the demo."""

from benchmarks import gate


def test_a_worse_score_and_a_slower_demo_are_each_said():
    assert gate.verdicts(gate.LEAST_P1, gate.MOST_TIME) == []
    low, slow = gate.verdicts(gate.LEAST_P1 - 1, gate.MOST_TIME + 1)
    assert "P@1" in low and str(gate.LEAST_P1) in low
    assert "reference work" in slow and str(gate.MOST_TIME) in slow
