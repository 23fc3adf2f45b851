"""Read records with pandas and with DuckDB: a run folder is JSON lines, one record a line."""

import sys
from pathlib import Path

import duckdb

import qbench

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "reports/demo")

# pandas: a column for each setting and metric, bytes as bytes, step times as their median.
frame = qbench.load_run(folder).frame
plans = frame[frame["kind"] == "plan"]
print(plans[["precision", "r", "peak_allocated_bytes", "peak_reserved_bytes"]].to_string(index=False))

# DuckDB: the file as it is, one query.
query = """
    SELECT point.precision AS precision, kind, count(*) AS records,
           max(CAST(metrics.peak_allocated_bytes AS BIGINT)) AS peak_bytes
    FROM read_json(?, format = 'newline_delimited', maximum_object_size = 100000000)
    GROUP BY ALL ORDER BY ALL
"""
print(duckdb.execute(query, [str(folder / "records.jsonl")]).fetchall())
