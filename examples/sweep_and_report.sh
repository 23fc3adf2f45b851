#!/usr/bin/env bash
# Plan a sweep and write its report. `qbench run` instead of `plan` measures it as well.
set -e
cd "$(dirname "$0")/.."

qbench plan examples/sweep.yaml --out runs/sweep
qbench report runs/sweep --out runs/sweep/report
