"""The arrows between the packages, and that nothing the server reaches can decode a picture."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("spact_models", "client", "server", "simulations")
MAY_IMPORT = {
    "spact_models": {"spact_models"},
    "client": {"client", "spact_models"},
    "server": {"server", "spact_models"},
    "simulations": set(PACKAGES),
}
PIXEL_READERS = ("av", "PIL", "torchvision.io", "cv2", "imageio", "decord")


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports anywhere, inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its arrow"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_import_arrows(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = {name.split(".")[0] for name in imported_modules(path)} & set(PACKAGES)
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[package]}"


def test_no_file_of_the_server_imports_a_pixel_reader():
    for path in sorted((ROOT / "server").rglob("*.py")):
        readers = {name for name in imported_modules(path) if is_reader(name)}
        assert not readers, f"{path.relative_to(ROOT)} imports {readers}"


def is_reader(name: str) -> bool:
    return any(name == reader or name.startswith(f"{reader}.") for reader in PIXEL_READERS)


def test_loading_the_server_loads_no_pixel_reader_and_no_client():
    code = "import sys, server.app; print('\\n'.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split("\n")
    assert "server.strategy" in loaded  # the list is the real one
    assert [name for name in loaded if is_reader(name)] == []
    assert [name for name in loaded if name.split(".")[0] in ("client", "simulations")] == []
