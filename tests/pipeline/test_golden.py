"""Golden numbers: about ten of each kind of result of the `tiny` pipeline, as they were when its version was raised.

A change of code, of a default or of a library that changes a number is found here, and nothing else is: not a move, a
new name or a comment. Whoever changes numbers on purpose raises the version in params.yaml, which makes the results of
that kind anew, and writes these files by `python tests/golden_numbers.py`.
"""

import json

import pytest
from golden_numbers import FOLDER, differences, look_up
from projects import finished


@pytest.mark.parametrize("kind", sorted(f.stem for f in FOLDER.glob("*.json")))
def test_numbers_are_those_of_their_version(kind):
    found = differences(kind, finished().project.results / "metrics")
    assert not found, f"numbers of `{kind}` changed: raise `versions.{kind}` or mend the code\n" + "\n".join(found)


def test_a_changed_number_is_found_and_named(tmp_path):
    about = json.loads((FOLDER / "defects.json").read_text())
    metrics = json.loads((finished().project.results / "metrics" / "defects.json").read_text())
    (tmp_path / "defects.json").write_text(json.dumps(metrics))
    assert differences("defects", tmp_path) == []
    first = next(row for row in metrics["results"] if about["numbers"][0]["where"].items() <= row.items())
    first["value"] *= 1 + 1e-4
    (tmp_path / "defects.json").write_text(json.dumps(metrics))
    (line,) = differences("defects", tmp_path)
    assert line.startswith(f"results {about['numbers'][0]['where']}")


def test_a_claim_stands_where_it_says():
    """Its value in the metrics it names, its row in the notebook's cell it names."""
    results = finished().project.results
    claims = json.loads((results / "tables" / "claims.json").read_text())
    assert len({claim["stage"] for claim in claims}) == 5
    for claim in claims:
        metrics = json.loads((results / "metrics" / f"{claim['stage']}.json").read_text())
        assert claim["value"] == pytest.approx(look_up(metrics, claim["metric"]), rel=1e-12), claim["claim"]
        assert claim["question"].endswith("?")
        name, _, cell = claim["cell"].partition("#")
        cells = {c["id"]: c for c in json.loads((results / "notebooks" / name).read_text())["cells"]}
        shown = json.dumps(cells[cell]["outputs"])
        assert claim["claim"][:40] in shown, claim["claim"]
