# Sourced by each finding: installs $packages into a temporary folder, goes there, and lets Python find what stands here.
export PYTHONPATH
PYTHONPATH=$(cd "$(dirname "$0")/shared" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if command -v uv > /dev/null; then
    uv venv --quiet venv
    uv pip install --quiet --python venv/bin/python $packages
else
    python3 -m venv venv
    venv/bin/pip install --quiet $packages
fi
echo "versions: $packages"
