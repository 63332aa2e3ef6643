"""A notebook as a web page that loads nothing from elsewhere: no scripts, formulas drawn, images embedded."""

import base64
import io
import re
from pathlib import Path

FORMULA = re.compile(r"\$\$(?P<display>[^$]+)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+)\$(?!\w)")
STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; }
.highlight { background: #f6f6f6; padding: .1rem .8rem; }
pre { overflow-x: auto; font-size: 13px; line-height: 1.4; }
img { max-width: 100%; }
img.display { display: block; margin: 1rem auto; }
.jp-OutputArea-output { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
"""


def write(notebook, file: Path) -> None:
    """Write a notebook as a page.

    Args:
        notebook: nbformat's.
        file: `.html`; its folder exists.
    """
    from nbconvert import HTMLExporter
    from nbformat import from_dict
    from pygments.formatters import HtmlFormatter

    from matalign import png

    notebook = from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(drawn, cell.source)
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                output.data["image/png"] = base64.b64encode(png.palette(base64.b64decode(picture))).decode()
    page = HTMLExporter(template_name="basic", embed_images=True, exclude_anchor_links=True)
    body, _ = page.from_notebook_node(notebook)
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{file.stem}</title>'
    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    file.write_text(f"{head}\n<style>{style}</style></head><body>\n{body}\n</body></html>\n")


def drawn(formula: re.Match[str]) -> str:
    """A TeX formula as an image in the text, set by matplotlib; as it is where matplotlib does not know a command."""
    import matplotlib
    from matplotlib import mathtext
    from matplotlib.font_manager import FontProperties

    kind = formula.lastgroup
    tex = " ".join(formula[kind].split())
    image = io.BytesIO()
    size_pt = 12
    try:
        with matplotlib.rc_context({"mathtext.fontset": "cm", "svg.hashsalt": "", "svg.fonttype": "path"}):
            depth = mathtext.math_to_image(f"${tex}$", image, prop=FontProperties(size=size_pt), format="svg")
    except ValueError:
        return formula[0]
    svg = re.sub(rb"<metadata>.*?</metadata>|<!--.*?-->", b"", image.getvalue(), flags=re.DOTALL)  # date and version
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    text = tex.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<img class="{kind}" alt="{text}" style="vertical-align: {-depth / size_pt:.2f}em" src="{source}">'
