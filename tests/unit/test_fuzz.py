"""A short run of the fuzzer, its outcome written down: each Python in CI must find the same."""

import fuzz_decoder


def test_fuzzed_events_meet_one_fate_on_every_python_and_raise_nothing() -> None:
    result = fuzz_decoder.fuzz(20_000, seed=1)

    assert result.faults == []
    assert result.verdicts["folded"] > 20_000 / 3
    assert result.verdicts.total() == 20_000
    assert result.digest == "43da021a19ddd60e52dfb2b593314dd3"
