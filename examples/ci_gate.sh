#!/usr/bin/env bash
# A gate in CI: make the baseline once and commit it; then check each change against it. Exit code 1: it got worse.
set -e
cd "$(dirname "$0")/.."

# Once, and whenever new numbers are accepted:
qbench plan scenarios/ci.yaml --json > runs/plan.json
qbench baseline accept runs/plan.json --to runs/baseline.jsonl --reason "first baseline"

# In CI, on each change:
qbench check scenarios/ci.yaml --baseline runs/baseline.jsonl
