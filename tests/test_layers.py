import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In a process of its own, for it silences all loggers of the one that it runs in.
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports('pyproject.toml', no_cache=True))"


def test_no_module_imports_a_layer_above_its_own() -> None:
    checked = subprocess.run([sys.executable, "-c", LINT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
