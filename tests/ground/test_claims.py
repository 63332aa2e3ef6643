import json

import pytest
from golden_numbers import look_up

from matalign.claims import claim, locate

ROW = {"arm": "structure", "value": 0.85, "low": 0.81, "high": 0.9, "p": 0.01}
ABOUT = {"question": "q", "metric": "results[arm=structure].value", "note": "n"}


def test_a_claim_is_the_row_that_metrics_hold():
    row = claim("Recall@10 > 80 %", ROW, threshold=0.8, passed=ROW["low"] > 0.8, control="counting: 0.9", **ABOUT)
    assert json.dumps(row) == (
        '{"claim": "Recall@10 > 80 %", "question": "q", "metric": "results[arm=structure].value", "value": 0.85, '
        '"low": 0.81, "high": 0.9, "threshold": 0.8, "unit": "", "verdict": "PASS", "control": "counting: 0.9", '
        '"note": "n"}'
    )


def test_a_claim_that_did_not_pass_fails():
    assert claim("c", ROW, threshold=0.85, passed=False, unit="%", **ABOUT)["verdict"] == "FAIL"


def test_a_claim_says_where_its_value_stands():
    metrics = {"results": [ROW, {"arm": "structure", "k": 1.0, "value": 0.25}, {"arm": "text", "value": 0.5}]}
    assert locate("results", "value", arm="structure", k=1.0) == "results[arm=structure; k=1.0].value"
    assert look_up(metrics, "results[arm=structure; k=1.0].value") == 0.25
    assert look_up(metrics, "-results[arm=text].value") == -0.5
    assert look_up(metrics, "1-results[arm=structure; p=0.01].high") == pytest.approx(0.1)
    assert look_up(metrics, "mean results[].value") == pytest.approx(1.6 / 3)
    assert look_up({"of": {"a": metrics}}, "of.a.results[arm=text].value") == 0.5
    with pytest.raises(ValueError, match="expected one row, found 2"):
        look_up(metrics, "results[arm=structure].value")
    with pytest.raises(ValueError, match="expected rows"):
        look_up(metrics, "results.0")
