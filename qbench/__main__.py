"""Run qbench with `python -m qbench`."""

from qbench.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
