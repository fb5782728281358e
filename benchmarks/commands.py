"""Runs glimpose's commands for benchmarks that consist of them."""

import subprocess
import sys
from pathlib import Path


def run(*arguments: str | Path) -> None:
    """Run a glimpose command; where it fails, so does the benchmark."""
    result = subprocess.run([sys.executable, "-m", "glimpose.cli", *map(str, arguments)])
    if result.returncode:
        sys.exit(result.returncode)
