"""Plans as tools of coding agents, on stdio: `qbench mcp`."""
