#!/bin/sh
# Finding: papermill cannot say which error ended a notebook if a handler of IPython's `set_custom_exc` took it
# Expected: PapermillExecutionError tells the name and the value of the exception, as it does without the handler.
# Seen: It has the name CellExecutionError and no value: IPython publishes an error only from `showtraceback`, in
#   place of which a custom handler stands, whatever traceback it returns. The cell's outputs hold no error either.
# Versions: papermill 2.7.0, ipython 9.18.1, ipykernel 7.4.0
# Matters: A pipeline that tells a disk that is full from a fault of its code by the exception's name sees neither.
# matalign: tests/pipeline/test_run.py::test_short_memory_is_told_in_one_line.

set -eu
packages="papermill==2.7.0 ipython==9.18.1 ipykernel==7.4.0"
. "$(dirname "$0")/shared/install.sh"
cat > run.py <<'EOF'
import nbformat
import papermill

HANDLER = "get_ipython().set_custom_exc((KeyError,), lambda shell, kind, error, tb, tb_offset=None: [repr(error)])"
for title, cells in {"plain": [], "handler": [HANDLER]}.items():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (*cells, "{}['mp-1']")])
    nbformat.write(notebook, f"{title}.ipynb")
    try:
        papermill.execute_notebook(
            f"{title}.ipynb", f"{title}-out.ipynb", kernel_name="python3", progress_bar=False, log_output=False
        )
    except papermill.PapermillExecutionError as error:
        outputs = nbformat.read(f"{title}-out.ipynb", as_version=4).cells[-1].outputs
        print(f"{title}: {error.ename!r} {error.evalue!r}, {sum(o.output_type == 'error' for o in outputs)} outputs of errors")
EOF
venv/bin/python run.py > seen.txt 2> log.txt || { cat log.txt; exit 1; }
echo "expected: the two lines alike"
echo "seen:"
cat seen.txt
grep -q "^plain: 'KeyError' \"'mp-1'\", 1 outputs" seen.txt
grep -q "^handler: 'CellExecutionError' '', 0 outputs" seen.txt
