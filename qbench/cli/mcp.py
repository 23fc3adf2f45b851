"""`qbench mcp`: plans as tools of coding agents."""

from __future__ import annotations

from qbench.errors import QbenchError


def mcp_command() -> int:
    """Serve plan, fit, rank, compare and import as tools for coding agents (MCP on stdio).

    The tools read files and write none but cached plans. Each call ends within a minute of processor time.
    They need the extra: pip install 'qbench[mcp]'.
    """
    try:
        import mcp.server.mcpserver  # noqa: F401
    except ModuleNotFoundError as error:
        raise QbenchError("the tools need mcp; install it: pip install 'qbench[mcp]'") from error
    from qbench.mcp.server import server

    server().run()
    return 0
