"""The README of a profile's results: what was run, what it claims, what it cost, and which commit computed it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from matalign import config
from matalign.report import paper, tables
from matalign.report.printing import Table, markdown

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


def cost(made: Mapping[str, Mapping[str, Any]]) -> Table:
    """Minutes of each stage, and the machine.

    Args:
        made: stage -> its record, as `paper.provenance` gives it.
    """
    rows = [
        {
            "stage": stage,
            "minutes": record["minutes"],
            "cores": record["machine"]["cores"],
            "GPUs": len(record["machine"]["gpus"]),
            "processor": record["machine"]["cpu"],
        }
        for stage, record in made.items()
    ]
    rows.append({"stage": "all", "minutes": sum(r["minutes"] for r in rows), "cores": "", "GPUs": "", "processor": ""})
    cells = [[f"{value:.1f}" if key == "minutes" else str(value) for key, value in row.items()] for row in rows]
    return Table("cost", "Wall time.", pd.DataFrame(rows), list(rows[0]), cells)


def commits(made: Mapping[str, Mapping[str, Any]], *, stale: Collection[str]) -> Table:
    """The commit that computed each stage's numbers, and whether its code is today's.

    Args:
        made: as in `cost`.
        stale: stages whose code is another today.
    """
    rows = []
    for stage, record in made.items():
        git = record["git"] or {"sha": "none", "dirty": False}
        name = git["sha"][:12] + (" with changes" if git["dirty"] else "")
        state = f"computed by commit {name}; awaits its re-run" if stage in stale else "computed by the code as it is"
        rows.append({"stage": stage, "commit": name, "state": state})
    table = pd.DataFrame(rows)
    return Table("commits", "Commits.", table, list(table), table.to_numpy().tolist())


def text(folder: Path, metrics: Mapping[str, Any], *, stale: Collection[str] = ()) -> str:
    """The README of `results/<profile>`, in Markdown.

    Args:
        folder: `results/<profile>`.
        metrics: as from `paper.read`.
        stale: stages whose computing code differs from the code as it is.

    Raises:
        FileNotFoundError: a stage has left no provenance.
    """
    curate, made = metrics["curate"], paper.provenance(folder, [s for s in config.STAGES if s != "paper"])
    counts = curate["counts"]
    kind = "the synthetic sample" if curate["synthetic"] else "real data"
    links = [f"- [{name}]({name}): {what}" for name, what in LINKS if (folder / name).exists()]
    parts = [
        f"# Results of the profile `{folder.name}`",
        f"{counts['materials']:,} materials of {counts['chemical_systems']:,} chemical systems, with "
        f"{counts['protocols']:,} synthesis protocols: {kind}. Parameters: `{folder.name}` in `params.yaml`. Made by "
        "the stage `paper` from the files here; not edited by hand.",
        "\n".join(links),
        "## Claims",
        markdown(tables.claims(metrics)),
        "Brackets: 95 % interval.",
        "## Cost",
        markdown(cost(made)),
        "Of a stage that loaded all its fits: minutes and machine of the run that computed them.",
        "## Which code computed this",
        markdown(commits(made, stale=stale)),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(folder: Path, metrics: Mapping[str, Any], *, stale: Collection[str] = ()) -> Path:
    """Write `README.md` into the folder; arguments and errors as `text`."""
    file = folder / "README.md"
    file.write_text(text(folder, metrics, stale=stale), encoding="utf-8")
    return file
