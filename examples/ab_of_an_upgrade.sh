#!/usr/bin/env bash
# Does an upgrade cost memory? Plan the same steps under two Pythons, which differ in one library:
#   bash examples/ab_of_an_upgrade.sh OLD/bin/python NEW/bin/python
set -e
cd "$(dirname "$0")/.."

qbench ab examples/moe-upgrade.yaml --a "$1" --b "$2" --plan-only --out runs/upgrade
