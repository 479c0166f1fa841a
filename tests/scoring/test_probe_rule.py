"""The probe's rule over a few trained adapters; `tests.bench.bench_probe` does the same over a hundred."""

from tests.bench.bench_probe import RIGHT, measure

ADAPTERS = 8


def test_the_probe_lets_the_right_adapter_pass_in_both_dtypes_and_no_other(tmp_path):
    results = [result for result in measure(tmp_path, ADAPTERS) if result["verifiable"]]
    assert {(result["strength"], result["dtype"]) for result in results} == {
        (strength, dtype) for strength in ("strong", "weak") for dtype in ("float32", "bfloat16")
    }, "the weakly trained are too weak, so this test would see only easy cases"
    for result in results:
        if result["kind"] in (RIGHT, "base", "another"):
            assert result["passed"] == (result["kind"] == RIGHT), result
