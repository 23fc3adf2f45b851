"""MkDocs hooks: fill in generated tables, run code blocks and show what they print, link files of the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))

import blocks  # noqa: E402
import generated  # noqa: E402

PICTURES = {"report.png": "reports/demo/report.png", "page.png": "reports/page.png"}
MARKER = re.compile(r"^<!-- generated: ([\w-]+)((?: \S+)*) -->$", re.MULTILINE)
REPO_LINK = re.compile(r"\[([^\]]+)\]\(repo:([^)#]+)(#[^)]*)?\)")


def on_pre_build(config: Any) -> None:
    """Run the code blocks of README and CONTRIBUTING. Raises PluginError where one fails."""
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (generated.ROOT / name).read_text(encoding="utf-8")
        try:
            with blocks.scratch() as folder:
                runner = blocks.Page(folder)
                for block in blocks.blocks_of(text):
                    runner.output(block)
        except blocks.BlockError as error:
            raise PluginError(f"{name}: {error}") from error


def on_files(files: Any, config: Any) -> Any:
    """Add the committed pictures, which pages show as `pictures/NAME`."""
    for name, path in PICTURES.items():
        files.append(File.generated(config, f"pictures/{name}", abs_src_path=str(generated.ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return the page with tables, outputs and links filled in. Raises PluginError where something fails."""
    try:
        with blocks.scratch() as folder:
            runner = blocks.Page(folder)
            markdown = blocks.FENCE.sub(lambda match: _shown(runner, match), markdown)
        markdown = MARKER.sub(lambda match: generated.GENERATED[match[1]](*match[2].split()), markdown)
        return REPO_LINK.sub(lambda match: _link(match, config.repo_url), markdown)
    except Exception as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def _shown(runner: blocks.Page, match: re.Match[str]) -> str:
    block = blocks.block_of(match)
    output = runner.output(block).rstrip()
    if block.language == "console":
        lines = block.code.rstrip()
        extra = "" if "quiet" in block.marks or not output else f"\n{output}"
        return f"```console\n{lines}{extra}\n```"
    code = "" if "hidden" in block.marks else f"```{block.language}\n{block.code}```"
    if not output or "quiet" in block.marks:
        return code
    if output.startswith("<div"):
        return f"{code}\n\n{output}"
    if output.startswith("| "):
        return f"{code}\n\n{output}"
    return f"{code}\n\n```text\n{output}\n```"


def _link(match: re.Match[str], repo_url: str | None) -> str:
    """Return a link to a file of the repository, or its path where the site knows no repository."""
    text, path = match[1], match[2]
    if not (generated.ROOT / path).exists():
        raise ValueError(f"{path} is not in the repository")
    if not repo_url:
        return f"{text} (`{path}`)" if path not in text else text
    return f"[{text}]({repo_url.rstrip('/')}/blob/main/{path})"
