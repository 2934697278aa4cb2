"""The example files: their syntax, and that the commands in them are commands of this version."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import fedspact
from spact_models.run_config import load_settings, read_config_file

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "examples" / "systemd").glob("*.service"))
COMPOSE = ROOT / "examples" / "compose"


def unit(file: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)  # Environment= may stand twice
    parser.optionxform = str
    parser.read(file)
    return parser


def understood(words: list[str]) -> None:
    """The front door takes these words; it exits with a usage message where it does not."""
    assert words[0].rpartition("/")[2] == "fedspact"
    fedspact.build_parser(words[1]).parse_args(words[2:])


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_a_unit_starts_a_command_of_this_version(file):
    read = unit(file)
    assert read.sections() == ["Unit", "Service", "Install"]
    understood(shlex.split(read["Service"]["ExecStart"]))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_systemd_finds_nothing_to_say(file, tmp_path):
    """With a program that exists here; everything else is the file's own."""
    copy = tmp_path / file.name
    copy.write_text(file.read_text().replace("/opt/fedspact/bin/fedspact", "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    ours = [line for line in found.stderr.splitlines() if file.name in line]
    assert ours == []


def test_the_compose_file_names_pinned_images_known_volumes_and_commands_of_this_version():
    tree = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    assert set(tree) == {"services", "volumes"}
    for name, service in tree["services"].items():
        assert set(service) <= {
            "build", "image", "command", "ports", "volumes", "depends_on", "restart", "security_opt"
        }, name  # fmt: skip
        assert re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+", service["image"])
        understood(service["command"])
        named = {volume.partition(":")[0] for volume in service["volumes"]}
        assert {volume for volume in named if not volume.startswith("./")} <= set(tree["volumes"])
        assert set(service.get("depends_on", ())) <= set(tree["services"])
    (base,) = re.findall(r"^FROM (\S+)$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm", base)
    build = tree["services"]["server"]["build"]
    assert (COMPOSE / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda file: file.stem)
def test_an_example_of_settings_is_accepted_and_reaches_the_settings(file):
    named = read_config_file(file)
    settings = load_settings(named).flat()
    assert {key: settings[key] for key in named} == named
