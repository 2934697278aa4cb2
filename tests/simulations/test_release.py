"""Export, signature, gate: a file answers as the original, a changed one is refused, without a pass none is signed."""

import json
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.anonymize.model import open_model
from client.app import make_app
from fedspact import main
from server.policy import load_policy
from server.release import release, release_from_settings
from server.runs import RunFolder
from simulations.inprocess import InProcessGrid
from spact_models.anonymizer import Anonymizer, AnonymizerConfig
from spact_models.deployed import Deployed
from spact_models.errors import UserError
from spact_models.export import export
from spact_models.run_config import load_settings
from spact_models.signing import card_path, make_key, public_path, read_private_key, sign, signature_path, verify

QUIET = {"networks.output_noise": 0.0, "game.beta": 0.0}


def sets(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def original(tmp_path_factory, squares):
    """A real run of two sites, whose f_A adds no noise."""
    out = tmp_path_factory.mktemp("release") / "run"
    tiny = {"clip.size_px": 16, "clip.frames": 4, "clip.stride_frames": 1, "networks.anonymizer_channels": 4}
    tiny |= {"networks.anonymizer_depth": 1, "batch.clips": 4, "batch.views": 4, "warmup.steps": 1, "rounds.warmup": 1}
    tiny |= {"rounds.minimax": 1, "rounds.cycles": 1, "game.catch_up_steps": 1, "device": "cpu", **QUIET}
    words = ["simulate", "--data", squares, "--out", out, "--sites", 2, "--no-judge", *sets(tiny)]
    assert main([str(word) for word in words]) == 0
    return out


@pytest.fixture(scope="module")
def graph(original, tmp_path_factory):
    """Its anonymizer as an ONNX file."""
    out = tmp_path_factory.mktemp("graph") / "a.onnx"
    assert main(["export", str(original), "-o", str(out), "--format", "onnx"]) == 0
    return out


@pytest.fixture
def run(original, tmp_path):
    """A copy of one's own; the sites' files in it still name the original's cache, which is only read."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def key(tmp_path):
    make_key(tmp_path / "owner.key")
    return tmp_path / "owner.key"


@pytest.mark.parametrize(
    ("changes", "history"),
    [({"kind": "frame"}, 0), ({"motion_input": "frames"}, 1), ({"motion_frames": 3, "output_cell_px": 4}, 3)],
)
def test_every_kind_is_a_graph_that_says_its_history_and_answers_alike(tmp_path, changes, history):
    """Written, opened again and compared on three sizes, one frame at a time among them, by the exporter itself."""
    config = AnonymizerConfig(**{"kind": "motion", "base_channels": 4, "depth": 1, "size_px": 16, **changes})
    made = export(Anonymizer(config).eval(), tmp_path / "a.pt2", "torch-export", {})
    assert made.max_difference < 1e-4
    assert made.metadata["history_frames"] == history


def test_an_exported_graph_answers_as_the_original(run, graph, tmp_path, capsys):
    """ONNX in onnxruntime, at another batch, length and size than it was traced with."""
    import onnxruntime
    import torch

    files = [graph]
    for form, suffix in (("torch-export", ".pt2"), ("safetensors", ".safetensors")):
        files.append(tmp_path / f"a{suffix}")
        assert main(["export", str(run), "-o", str(files[-1]), "--format", form]) == 0
        assert "differ from the original's by at most" in capsys.readouterr().out
    for file in files:
        assert json.loads(card_path(file).read_text())["model"]["max_difference"] < 1e-4
    clip = np.random.default_rng(0).random((2, 3, 5, 24, 32), dtype=np.float32)
    session = onnxruntime.InferenceSession(graph)
    answer = session.run(None, {session.get_inputs()[0].name: clip})[0]
    with torch.inference_mode():
        twin = open_model(run).anonymizer.transform(torch.from_numpy(clip)).numpy()
    assert answer.shape == twin.shape
    assert np.abs(answer - twin).max() < 1e-4


def test_a_signature_holds_until_a_byte_changes(run, key, tmp_path):
    out = tmp_path / "a.safetensors"
    assert main(["export", str(run), "-o", str(out), "--format", "safetensors"]) == 0
    assert verify(out).status == "unsigned"
    sign(out, read_private_key(key))
    assert verify(out, [public_path(key)]).trusted
    assert verify(out, []).status == "unknown-key"
    whole = {path: path.read_bytes() for path in (out, card_path(out), signature_path(out))}
    for path, content in whole.items():
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert verify(out, [public_path(key)]).refused, path
        with pytest.raises(UserError, match="It is never used"):
            open_model(out)
        path.write_bytes(content)
    assert verify(out, [public_path(key)]).trusted


@contextmanager
def files_end_at(size):
    """No file may grow beyond that, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_a_file_of_an_export_or_a_release_is_a_users_mistake(run, key, tmp_path, capsys):
    """Each file: the model in both ways of writing it, the card and its readable half, the signature, the decision."""
    for form, suffix in (("safetensors", ".safetensors"), ("torch-export", ".pt2")):
        with files_end_at(1000):
            assert main(["export", str(run), "-o", str(tmp_path / f"big{suffix}"), "--format", form]) == 2
        assert f"big{suffix}: cannot be written (File too large); free some space" in capsys.readouterr().err
    out = tmp_path / "a.safetensors"
    for place in (card_path(out), card_path(out).with_suffix(".md")):
        place.mkdir()
        assert main(["export", str(run), "-o", str(out), "--format", "safetensors", "--force"]) == 2
        assert f"{place}: cannot be written (Is a directory); free that disk" in capsys.readouterr().err
        place.rmdir()
    assert main(["export", str(run), "-o", str(out), "--format", "safetensors", "--force"]) == 0
    signature_path(out).mkdir()
    with pytest.raises(UserError, match=r"\.sig: cannot be written \(Is a directory\); nothing is signed"):
        sign(out, read_private_key(key))
    for site in (run / "sites").glob("*/site.yaml"):
        site.write_text("name: 3\n")  # no site judges: the decision comes at once
    with files_end_at(500):
        assert release_under(LENIENT, run, key, tmp_path) == 2
    assert "release.json: cannot be written (File too large); free that disk, then release" in capsys.readouterr().err


def test_who_uses_a_model_is_warned_or_refuses_it(run, key, tmp_path, monkeypatch):
    out = tmp_path / "a.safetensors"
    assert main(["export", str(run), "-o", str(out), "--format", "safetensors"]) == 0
    assert open_model(out).note == f"note: {out} is not signed: no federation vouches for it (docs/release.md)"
    with pytest.raises(UserError, match="--signed-only takes released models alone"):
        open_model(out, signed_only=True)
    video = ["anonymize", "none.mp4", "-o", str(tmp_path / "o.mp4"), "--model", str(out), "--signed-only"]
    assert main(video) == 2
    sign(out, read_private_key(key))
    monkeypatch.setattr("spact_models.signing.trusted_folder", lambda: tmp_path)
    assert open_model(out, signed_only=True).note == ""


def test_a_policy_with_a_mistake_names_it(run, key, tmp_path, capsys):
    for text, wrong in (
        ("sites: 2\n", "leakage"),
        ("sites: 2\nleakage: 2\nutility: 0\n", "leakage = 2"),
        ("siets: 2\n", "siets"),
        ("sites: 2\nleakage: 0.2\nutility: 0\nleakage: 0.9\n", "the key 'leakage' stands here twice"),
        ("sites: 2\nleakage: 0.2\nutility: 0\nlearned: 1.5\n", "learned = 1.5, must be within 0 and 1"),
        ("sites: 2\nleakage: 0.2\nutility: 0\nattackers: [frame-vti]\n", 'attacker = "frame-vti", must be one of'),
    ):
        policy = tmp_path / "policy.yaml"
        policy.write_text(text)
        assert main(["release", str(run), "--policy", str(policy), "--key", str(key)]) == 2
        assert wrong in capsys.readouterr().err


def test_a_deployed_file_answers_as_the_original_and_never_twice_with_the_same_noise(run, graph, tmp_path):
    loud = tmp_path / "loud.onnx"
    torch.manual_seed(0)
    config = replace(open_model(run).anonymizer.config, output_noise=0.3)
    export(Anonymizer(config).eval(), loud, "onnx", {}, source_sha256="0")
    clip = torch.rand(1, 3, 5, 16, 16)
    with torch.inference_mode():
        twin = open_model(run).anonymizer.transform(clip)
    assert torch.allclose(Deployed(graph)(clip), twin, atol=1e-4)
    torch.manual_seed(0)
    first = Deployed(loud)(clip)
    torch.manual_seed(0)
    assert not torch.equal(first, Deployed(loud)(clip))
    with pytest.raises(UserError, match="must be multiples of"):
        Deployed(graph)(torch.rand(1, 3, 5, 16, 17))


LENIENT = "sites: 2\nleakage: 1.0\nutility: 0\nvideos: 1\nraw_leakage: 0.001\nlearned: 0\npessimistic: false\n"
SMALL_JUDGE = {"judge.steps": 3, "judge.batch": 4, "judge.train_clips": 1, "judge.test_clips": 1}


def release_under(policy, run, key, tmp_path, **more):
    (tmp_path / "policy.yaml").write_text(policy)
    words = ["release", run, "--policy", tmp_path / "policy.yaml", "--key", key, *sets({**SMALL_JUDGE, **more})]
    return main([str(word) for word in words])


def test_the_sites_judge_and_only_a_pass_is_signed(run, key, tmp_path, capsys, monkeypatch):
    """From end to end: two sites train fresh attackers on their own videos, the policy decides, the file is used."""
    model = run / "anonymizer.safetensors"
    assert release_under(LENIENT, run, key, tmp_path) == 0
    said = capsys.readouterr().out
    assert f"released: {model}, signed by key" in said
    told = json.loads((run / "release.json").read_text())
    assert told["passed"]
    assert [site["name"] for site in told["sites"]] == ["site-1", "site-2"]
    for site in told["sites"]:
        assert {"action", "retrieval_all"} <= {one["task"] for one in site["questions"]}
        for one in site["questions"]:
            assert 0 <= one["raw"] <= 1
            assert 0 <= one["anonymized"] <= 1
            assert (one["learned"] is None) == one["task"].startswith("retrieval")
    card = json.loads(card_path(model).read_text())
    assert card["release"]["sites"] == told["sites"]
    assert main(["release", "verify", str(model), "--trust", str(public_path(key))]) == 0
    monkeypatch.setattr("spact_models.signing.trusted_folder", lambda: tmp_path)
    assert open_model(run, signed_only=True).sha256 == told["model"]["sha256"]

    capsys.readouterr()
    assert release_under(LENIENT.replace("leakage: 1.0", "leakage: 0.0", 1).replace("utility: 0", "utility: 1.0"),
                         run, key, tmp_path) == 1  # fmt: skip
    said = capsys.readouterr().out
    assert "not released, nothing is signed:" in said
    assert "utility" in said
    assert not signature_path(model).exists()  # the earlier pass is taken back
    assert verify(model, [public_path(key)]).status == "unsigned"
    assert main(["release", "verify", str(model), "--trust", str(tmp_path / "nokey.pub")]) == 2
    assert "nokey.pub: cannot be read (No such file or directory)" in capsys.readouterr().err
    assert not json.loads((run / "release.json").read_text())["passed"]


def test_a_hurried_judge_is_no_evidence_and_is_told_what_to_do(run, key, tmp_path, capsys):
    assert release_under(LENIENT.replace("learned: 0\n", "learned: 0.9\n"), run, key, tmp_path) == 1
    said = capsys.readouterr().out
    assert "site site-1 does not count: learned = 0.9 is needed" in said
    assert "identity 0." in said
    assert "give them more judge.steps" in said
    assert "0 sites count, sites = 2 are needed" in said
    assert not signature_path(run / "anonymizer.safetensors").exists()


def sites_of(run, settings, before_site=None):
    """The run's own sites, as a server would reach them."""
    nodes = [{"site": str(file)} for file in sorted((run / "sites").glob("*/site.yaml"))]
    return InProcessGrid(make_app(), nodes, settings.flat(), before_site)


def test_a_mistake_in_the_policy_of_a_deployment_costs_no_signature(run, key, tmp_path):
    """``flwr run``: found before any site is asked, not by each of them after the signature is gone."""
    model = run / "anonymizer.safetensors"
    assert main(["export", str(run), "-o", str(tmp_path / "a.safetensors"), "--format", "safetensors"]) == 0
    shutil.copy(card_path(tmp_path / "a.safetensors"), card_path(model))
    shutil.copy(tmp_path / "a.safetensors", model)
    sign(model, read_private_key(key))
    (tmp_path / "policy.yaml").write_text(LENIENT + "attackers: [frame-vti]\n")
    about = {"run_dir": str(run), "release.policy": str(tmp_path / "policy.yaml"), "release.key": str(key)}
    settings = load_settings({**RunFolder.open(run).settings(), **SMALL_JUDGE, **about, "task": "release"})
    with pytest.raises(UserError, match=r'policy.yaml: attacker = "frame-vti", must be one of'):
        release_from_settings(sites_of(run, settings), settings)
    assert verify(model, [public_path(key)]).trusted


def test_an_interrupted_release_leaves_no_word_of_an_earlier_pass(run, key, tmp_path):
    assert release_under(LENIENT, run, key, tmp_path) == 0

    def interrupt(*_):
        raise KeyboardInterrupt

    folder, policy = RunFolder.open(run), load_policy(tmp_path / "policy.yaml")
    settings = load_settings(folder.settings())
    with pytest.raises(KeyboardInterrupt):
        release(sites_of(run, settings, interrupt), settings, folder, policy, read_private_key(key))
    assert not signature_path(run / "anonymizer.safetensors").exists()
    assert not (run / "release.json").exists()


def test_a_site_that_cannot_judge_is_silent_and_too_many_silent_ones_fail_the_gate(run, key, tmp_path, capsys):
    site = next((run / "sites").glob("*/site.yaml"))
    site.write_text("name: 3\n")
    assert release_under(LENIENT, run, key, tmp_path) == 1
    assert not signature_path(run / "anonymizer.safetensors").exists()
    assert "1 sites count, sites = 2 are needed" in capsys.readouterr().out


def test_under_differential_privacy_the_gate_is_refused(run, key, tmp_path, capsys):
    settings = json.loads((run / "settings.json").read_text())
    settings["settings"] |= {"dp.unit": "site", "dp.clip_norm": 1.0, "dp.noise_multiplier": 1.0, "dp.delta": 1e-5}
    (run / "settings.json").write_text(json.dumps(settings))
    assert release_under(LENIENT, run, key, tmp_path) == 2
    assert "dp.unit" in capsys.readouterr().err
