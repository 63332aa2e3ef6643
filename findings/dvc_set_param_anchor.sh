#!/bin/sh
# Finding: `dvc exp run -S` on a map with an anchor succeeds and changes nothing; on its alias it changes the other
#   too
# Expected: With `base: &base {lr: 1}` and `other: *base`, `-S base.lr=9` sets base.lr to 9, and `-S other.lr=9`
#   sets other.lr, or either is refused.
# Seen: The first exits 0, runs nothing and leaves lr at 1, though it rewrites the file. The second sets base.lr to
#   9 too: values go back key by key into the one map of anchor and alias, and the last wins.
# Versions: dvc 3.67.1
# Matters: An ablation is reported as run with a parameter it did not have.
# matalign: tests/pipeline/test_dvc.py::test_parameters_have_no_anchored_map.

set -eu
packages="dvc==3.67.1"
. "$(dirname "$0")/shared/install.sh"
export PATH="$work/venv/bin:$PATH" DVC_NO_ANALYTICS=true GIT_CONFIG_GLOBAL=/dev/null
commit() { git add --all; git -c user.name=none -c user.email=none@example.org commit --quiet -m state; }
value() { sed -n 's/^  lr: //p' params.yaml | tr '\n' ' '; }
mkdir project
cd project
git init --quiet
dvc init --quiet
printf 'base: &base\n  lr: 1\nother: *base\n' > params.yaml
cat > dvc.yaml <<'EOF'
stages:
  train:
    cmd: grep lr params.yaml > rates.txt
    params: [base, other]
    outs: [{rates.txt: {cache: false}}]
EOF
dvc repro --quiet
commit
status=0
dvc exp run --quiet -S base.lr=9 || status=$?
first="exit $status, base.lr $(value)"
git checkout --quiet .
status=0
dvc exp run --quiet -S other.lr=9 || status=$?
second="exit $status, base.lr $(value)"
echo "expected: exit 0, base.lr 9; exit 0, base.lr 1"
echo "seen:     $first; $second"
test "$first" = "exit 0, base.lr 1 "
test "$second" = "exit 0, base.lr 9 "
