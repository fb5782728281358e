"""Shared fixtures; shape annotations are checked while the tests run."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

CHECKED = ["geometry", "render", "decode", "losses", "metrics"]
install_import_hook([f"glimpose.{name}" for name in CHECKED], "beartype.beartype")

pytest_plugins = ["parts"]  # imported after the hook, so that what it imports is checked too


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    skips = {
        "slow": (config.getoption("--slow"), "slow: run with --slow"),
        "gpu": (torch.cuda.is_available(), "needs a CUDA device"),
        "data": (
            "GLIMPOSE_DATA" in os.environ,
            "GLIMPOSE_DATA is unset: point it at a folder with lmo/ and backgrounds/",
        ),
    }
    for item in items:
        for marker, (runs, reason) in skips.items():
            if item.get_closest_marker(marker) and not runs:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def lmo() -> Path:
    """Folder of the real LM-O data, in BOP layout."""
    return Path(os.environ["GLIMPOSE_DATA"]) / "lmo"
