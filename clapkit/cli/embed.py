"""``clapkit embed``."""

from __future__ import annotations

from clapkit.cli.console import Table
from clapkit.cli.execute import console_for, execute
from clapkit.config import EmbedConfig

HELP = """Embed a prepared corpus, folders, files or captions with a trained model.

\b
    clapkit embed
    clapkit embed ~/sounds --pool none
    clapkit embed captions.txt --modality text
"""


def run(config: EmbedConfig, argv: list[str]) -> None:
    """Embed, then print what was written."""
    from clapkit.steps import embed

    console = console_for(config)
    _, result = execute("embed", config, argv, embed.run, console)
    rows = [[f"{modality} vectors", str(count)] for modality, count in result["counts"].items()]
    rows += [["width", str(result["width"])], ["rejected", str(result["num_rejected"])]]
    console.result(result, tables=[Table(f"Embedded {result['data']['name']}", ["", ">count"], rows)])
