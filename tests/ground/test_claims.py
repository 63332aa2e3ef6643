import json

from matalign.claims import claim

ROW = {"arm": "structure", "value": 0.85, "low": 0.81, "high": 0.9, "p": 0.01}


def test_a_claim_is_the_row_that_metrics_hold():
    row = claim("Recall@10 > 80 %", ROW, threshold=0.8, passed=ROW["low"] > 0.8, note="n")
    assert json.dumps(row) == (
        '{"claim": "Recall@10 > 80 %", "value": 0.85, "low": 0.81, "high": 0.9, "threshold": 0.8, "unit": "", '
        '"verdict": "PASS", "note": "n"}'
    )


def test_a_claim_that_did_not_pass_fails():
    assert claim("c", ROW, threshold=0.85, passed=False, unit="%", note="")["verdict"] == "FAIL"
