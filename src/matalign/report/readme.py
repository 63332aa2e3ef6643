"""The README of a profile's results: what was run, what it claims, what it cost, and which commit computed it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from matalign.report import paper, tables
from matalign.report.printing import markdown

LINKS = (
    ("paper.pdf", "the paper"),
    ("tables", "its tables, every row"),
    ("figures", "its figures"),
    ("metrics", "what each stage computed"),
    ("notebooks", "the executed notebooks"),
    ("provenance", "parameters, versions and machine of each stage"),
    ("model", "the released model"),
    ("atlas.html", "the map of the space, one page"),
)


def cost(made: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the minutes of each stage, and of the machine; `made` as `paper.provenance` gives it."""
    cells = [
        [stage, f"{r['minutes']:.1f}", str(m["cores"]), str(len(m["gpus"])), m["cpu"]]
        for stage, r, m in ((stage, r, r["machine"]) for stage, r in made.items())
    ]
    everything = ["all", f"{sum(r['minutes'] for r in made.values()):.1f}", "", "", ""]
    return markdown(["stage", "minutes", "cores", "GPUs", "processor"], [*cells, everything])


def commits(made: Mapping[str, Mapping[str, Any]], *, stale: Mapping[str, str]) -> str:
    """A table of the commit that computed each stage's numbers; `stale`: stage -> how its code is another today."""
    cells = []
    for stage, record in made.items():
        git = record["git"] or {"sha": "none", "dirty": False}
        name = git["sha"][:12] + (" with changes" if git["dirty"] else "")
        cells.append([stage, name, stale.get(stage, "computed by the code as it is")])
    return markdown(["stage", "commit", "state"], cells)


def write(
    folder: Path, metrics: Mapping[str, Any], *, stale: Mapping[str, str] | None = None, ignored: Collection[str] = ()
) -> Path:
    """Write the README of `results/<profile>`; `stale`: see `commits`; `ignored`: names there that git leaves out."""
    curate, made = metrics["curate"], paper.provenance(folder)
    counts, claims = curate["counts"], tables.claims(metrics)
    kept = {file.name for file in folder.iterdir()} - set(ignored)
    kind = "the synthetic sample" if curate["synthetic"] else "real data"
    parts = [
        f"# Results of the profile `{folder.name}`",
        f"{counts['materials']:,} materials of {counts['chemical_systems']:,} chemical systems, with "
        f"{counts['protocols']:,} synthesis protocols: {kind}. Parameters: `{folder.name}` in `params.yaml`. Made by "
        "the stage `paper` from the files here; not edited by hand.",
        "\n".join(f"- [{name}]({name}): {what}" for name, what in LINKS if name in kept),
        "## Claims",
        markdown(claims.header, claims.cells),
        "Brackets: 95 % interval.",
        "## Cost",
        cost(made),
        "Of a stage that loaded all its fits: minutes and machine of the run that computed them. Of a notebook run by "
        "hand there is no record.",
        "## Which code computed this",
        commits(made, stale=stale or {}),
    ]
    file = folder / "README.md"
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file
