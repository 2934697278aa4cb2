"""The attacks can do what they are for, stay quiet where there is nothing, and the command tells all of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.video.rows import read_rows, write_rows
from fedspact import main
from server.budget import schedule_costs
from simulations.audit import attacks, canary, membership, property_inference, update_inversion
from simulations.audit.findings import read_audit
from spact_models.accounting import epsilon_of
from spact_models.errors import UserError
from spact_models.networks import build_networks
from spact_models.noise import SecretStream
from spact_models.run_config import load_settings

CLASSES = ["jump", "walk"]
VIDEOS = {"dp.unit": "videos", "strategy.weighting": "equal", "dp.delta": 1e-4, "dp.sampling_rate": 0.2}


def shapes(count, size=16, seed=0):
    """Pictures as a one-bit difference has them: a bar somewhere that moves."""
    rng = np.random.default_rng(seed)
    out = torch.zeros(count, 1, 4, size, size)
    for number in range(count):
        y, x, wide = (int(value) for value in (*rng.integers(0, size - 6, 2), rng.integers(3, 6)))
        for t in range(4):
            out[number, 0, t, y : y + 5, (x + t) % (size - 6) : (x + t) % (size - 6) + wide] = 1.0
    return out


@pytest.fixture
def networks(fast):
    settings = load_settings(
        {**fast, "networks.anonymizer_channels": 8, "networks.output_noise": 0.0, "game.beta": 0.0}
    )
    return build_networks(settings, CLASSES)


def target(networks, pictures, labels):
    gradient = update_inversion.gradient_of(networks, pictures, labels, None)
    return update_inversion.Target([part.detach() for part in gradient], labels, None, tuple(pictures.shape), 0.1)


def test_one_clip_comes_back_from_a_plain_update_and_not_from_a_noised_one(networks):
    pictures, labels = shapes(12), torch.tensor([1])
    aim = target(networks, pictures[:1], labels)
    found = update_inversion.invert(networks, aim, 60, 0, lambda: None)
    plain = update_inversion.compare(found, pictures[:1], pictures[1:])
    noised = update_inversion.noised(aim.direction, 1.0, 1.0, 0)
    drowned = update_inversion.Target(noised, labels, None, aim.shape, 0.1)
    hidden = update_inversion.compare(
        update_inversion.invert(networks, drowned, 60, 0, lambda: None), pictures[:1], pictures[1:]
    )
    assert plain.matched == [True]
    assert plain.ssim[0] > hidden.ssim[0] + 0.15
    assert plain.psnr_db[0] > hidden.psnr_db[0] + 2
    clipped = update_inversion.noised(aim.direction, 1e-3, 0.0, 0)  # shorter, and the same direction
    for mine, true in zip(clipped, aim.direction, strict=True):
        assert torch.allclose(mine / mine.norm(), true / true.norm(), atol=1e-4) or not true.any()


def test_the_gradient_that_is_attacked_is_that_of_the_action_loss(networks):
    """The slow twin: one backward pass of L_T over both networks."""
    pictures, labels = shapes(3), torch.tensor([0, 1, 1])
    found = update_inversion.gradient_of(networks, pictures, labels, None)
    loss = torch.nn.functional.cross_entropy(networks.action(networks.anonymizer.shown(pictures)), labels)
    loss.backward()
    for mine, parameter in zip(found, update_inversion.parameters(networks), strict=True):
        assert torch.allclose(mine, parameter.grad, atol=1e-6)


def test_pairing_finds_whose_picture_is_whose():
    pictures = shapes(6)
    order = torch.tensor([2, 0, 1])
    told = update_inversion.compare(pictures[:3][order], pictures[:3], pictures[3:])
    assert min(told.ssim) > 0.999
    assert min(told.psnr_db) > 50
    assert told.matched == [True, True, True]
    wrong = update_inversion.compare(pictures[3:4], pictures[:1], pictures[1:])
    assert wrong.matched == [False]


def test_members_that_are_surer_are_found_and_equal_ones_are_not():
    rng = np.random.default_rng(0)
    known = np.stack([half for _ in range(4) for half in _halves(rng, 400)])
    hard = rng.normal(0, 3, 400)  # how easy a video is varies more than knowing it does
    knowing = hard + known * 2.0 + rng.normal(0, 1, known.shape)
    strong = membership.against_shadows(knowing, known)
    assert strong.auc_low > 0.8
    assert strong.caught > 0.1
    blind = membership.against_shadows(hard + rng.normal(0, 1, known.shape), known)
    assert blind.auc_low < 0.5 < blind.auc_high
    raw = membership.judged(knowing[0], known[0])  # without the shadows' calibration the same answers say little
    assert raw.auc < strong.auc - 0.1


def _halves(rng, count):
    half = np.zeros(count, bool)
    half[rng.permutation(count)[: count // 2]] = True
    return half, ~half


def test_a_property_that_moves_the_update_is_found_and_noise_hides_it():
    rng = np.random.default_rng(0)
    held = np.arange(60) % 2 == 0
    updates = rng.normal(0, 1, (60, 500))
    updates[held, :50] += 1.0
    plain, surely, _ = property_inference.auc_of(updates, held, 0)
    assert surely > 0.8
    low, high = property_inference.auc_of(updates + rng.normal(0, 30, updates.shape), held, 0)[1:]
    assert low < 0.5 < high
    summed = property_inference.summed(updates, 3, np.random.default_rng(1))
    assert property_inference.auc_of(summed, held, 0)[0] < plain - 0.1


def test_guesses_prove_what_a_coin_allows_and_no_more():
    """Randomised response at epsilon: the right share of guesses is e^eps / (1 + e^eps); half the claim is refuted."""
    rng = np.random.default_rng(0)
    for epsilon in (0.5, 1.0, 3.0):
        taken = rng.random(4000) < 0.5
        honest = rng.random(4000) < 1 / (1 + math.exp(-epsilon))
        scores = np.where(honest == taken, 1.0, -1.0) + rng.normal(0, 1e-6, 4000)
        found = canary.proved(scores, taken, 0.0)
        assert 0.6 * epsilon < found.epsilon <= epsilon
    blind = canary.proved(rng.normal(size=4000), rng.random(4000) < 0.5, 0.0)
    assert blind.epsilon < 0.2


def test_delta_loosens_the_bound_as_published():
    """Of Steinke et al. 2023: all of 1,000 guesses right; with delta the proof shrinks, and never passes delta = 0."""
    pure = canary.refuted(1000, 1000, 1000, 0.0, 0.05)
    assert math.exp(pure) / (1 + math.exp(pure)) == pytest.approx(0.05 ** (1 / 1000), abs=1e-6)
    loose = canary.refuted(1000, 1000, 1000, 1e-5, 0.05)
    assert 0 < loose < pure
    tail = sum(math.comb(20, k) * 0.7**k * 0.3 ** (20 - k) for k in range(15, 21))
    assert canary.likelihood(100, 20, 15, math.log(0.7 / 0.3), 0.0) == pytest.approx(tail)


@pytest.mark.parametrize("unit", ["videos", "site"])
def test_the_mechanism_keeps_its_promise_and_a_fraction_of_its_noise_would_not(unit):
    schedule = {"rounds.warmup": 0, "rounds.minimax": 4, "dp.noise_multiplier": 2.0, "dp.sampling_rate": 0.5}
    settings = load_settings({**VIDEOS, **schedule, "dp.unit": unit, "dp.delta": 1e-5})
    weaker = load_settings({**settings.flat(), "dp.noise_multiplier": 0.05})
    taken = np.random.default_rng(0).random(2000) < 0.5
    found, broken = (canary.proved(_seen(one, taken), taken, 1e-5).epsilon for one in (settings, weaker))
    assert 0 < found <= _claimed(settings)
    assert broken > found + 2
    assert broken > 0.9 * _claimed(settings)


STEPS = 12


def _claimed(settings):
    return epsilon_of(settings.dp, STEPS) if settings.dp.unit == "videos" else schedule_costs(settings)[-1]


def _seen(settings, taken):
    if settings.dp.unit == "videos":
        return canary.scores_videos(settings.dp, STEPS, taken, SecretStream())
    return canary.scores_sites(settings, 4, taken)


@pytest.fixture(scope="module")
def audited(tmp_path_factory, squares, smallest):
    """A small private run in the laboratory, and its quick audit."""
    folder = tmp_path_factory.mktemp("audit")
    chosen = {
        **smallest,
        "simulation.sites": 2,
        "rounds.minimax": 1,
        **VIDEOS,
        "dp.group_videos": 2,
        "dp.noise_multiplier": 4.0,
    }
    words = ["simulate", "--data", str(squares), "--no-judge", "--out", str(folder / "run")]
    for key, value in chosen.items():
        words += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    assert main(words) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "QUICK", attacks.Budget(3, 2, 4, 12, 6, 400))
        assert main(["audit", str(folder / "run"), "--quick", "--person", "red"]) == 0
    return folder / "run"


def test_the_command_runs_all_four_attacks_and_says_what_they_found(audited):
    audit = read_audit(audited / "audit.json")
    kinds = [finding.attack for finding in audit.findings]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "update inversion": 5, "membership": 2, "property": 2, "canary": 1
    }  # fmt: skip
    proof = audit.findings[-1]
    assert proof.value <= proof.more["claimed"]
    assert audit.not_measured == []
    assert (audit.settings["shadows"], audit.model["round"]) == (4, 2)
    assert audit.versions["torch"] == torch.__version__


@pytest.mark.parametrize(("labelled", "other", "found"), [(5, None, 5), (4, None, 0), (4, "dive", 0), (0, None, 0)])
def test_too_few_labelled_videos_to_restore_are_said(audited, squares, tmp_path, monkeypatch, labelled, other, found):
    """Two clips one by one, a batch of two and one to tell them from: five, each with an action that f_T knows."""
    monkeypatch.setattr(attacks, "QUICK", attacks.Budget(1, 2))
    rows = read_rows(squares)
    train, test = rows[:5], rows[12:]
    few = [*train[:labelled], *(replace(row, action=other) for row in train[labelled:])]
    write_rows([*few, *test], tmp_path / "few.csv")
    out = tmp_path / "audit.json"
    words = ["--quick", "--only", "inversion", "--data", str(tmp_path / "few.csv"), "--out", str(out)]
    assert main(["audit", str(audited), *words]) == 0
    audit = read_audit(out)
    assert len(audit.findings) == found
    said = f"update inversion: {labelled} training videos with an action of the run, at least 5 are needed"
    assert [note.partition(":")[0] for note in audit.not_measured] == ([] if found else ["update inversion"])
    assert found or audit.not_measured[0].startswith(said)


def test_attacks_that_have_nothing_to_learn_from_are_said_and_the_others_go_on(audited, squares, tmp_path):
    rows = [replace(row, action=None, attributes={"identity": "red"}) for row in read_rows(squares)]
    write_rows(rows, tmp_path / "blind.csv")
    words = ["--quick", "--data", str(tmp_path / "blind.csv"), "--out", str(tmp_path / "audit.json")]
    assert main(["audit", str(audited), *words]) == 0
    audit = read_audit(tmp_path / "audit.json")
    assert [finding.attack for finding in audit.findings] == ["canary"]
    assert [note.partition(" videos")[0].partition(" training")[0] for note in audit.not_measured] == [
        "update inversion: 0", "membership: 0", "property: 0"
    ]  # fmt: skip


def test_an_action_that_a_shadow_never_saw_has_no_chance_with_it(audited, squares, tmp_path, monkeypatch):
    monkeypatch.setattr(attacks, "QUICK", attacks.Budget(shadows=4))
    rows = [replace(row, action="jump" if number else "walk") for number, row in enumerate(read_rows(squares))]
    write_rows(rows, tmp_path / "rare.csv")  # "walk" is the last of the run's actions: half of the shadows know one
    words = ["--quick", "--only", "membership", "--data", str(tmp_path / "rare.csv")]
    assert main(["audit", str(audited), *words, "--out", str(tmp_path / "audit.json")]) == 0
    assert len(read_audit(tmp_path / "audit.json").findings) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_clip_comes_back_on_a_gpu_too(networks):
    for network in (networks.anonymizer, networks.action):
        network.cuda()
    pictures, labels = shapes(12), torch.tensor([1])
    aim = target(networks, pictures[:1].cuda(), labels.cuda())
    assert update_inversion.noised(aim.direction, 1.0, 1.0, 0)[0].is_cuda
    found = update_inversion.invert(networks, aim, 60, 0, lambda: None)
    assert update_inversion.compare(found, pictures[:1], pictures[1:]).matched == [True]


def test_what_an_audit_cannot_do_is_a_sentence(audited, tmp_path, capsys, monkeypatch):
    for words, said in (
        (["--only", "nonsense"], "must be out of inversion, membership, property, canary"),
        (["--person", "nobody"], "stands in 0 training videos of column 'identity'"),
        (["--noise", "0"], "must be above 0"),
    ):
        assert main(["audit", str(audited), "--quick", *words]) == 2
        assert said in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(attacks, "ATTACKS", {})  # it is said before any attack
        assert main(["audit", str(audited), "--quick", "--only", "canary", "--out", str(tmp_path)]) == 2
    assert f"must be a file; name one in it, --out {tmp_path / 'audit.json'}" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder\.json: cannot be written \(Is a directory\)"):
        read_audit(audited / "audit.json").write(tmp_path / "folder.json")
    (tmp_path / "audit.json").write_text(json.dumps({"format": "other", "version": 1}))
    with pytest.raises(UserError, match="not an audit that can be read"):
        read_audit(tmp_path / "audit.json")


def test_without_a_promise_there_is_nothing_to_refute(squares, fast, tmp_path, capsys):
    words = ["centralize", "--data", str(squares), "--no-judge", "--out", str(tmp_path / "run")]
    for key, value in {**fast, "rounds.minimax": 0}.items():
        words += ["--set", f"{key}={value}"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "run"), "--only", "canary", "--out", str(tmp_path / "mine.json")]) == 0
    said = capsys.readouterr()
    reason = "the run promises no epsilon (dp.unit = 'none')"
    assert said.out == f"not measured: canary: {reason}\n\n{tmp_path / 'mine.json'}\n"  # no table without rows
    assert "0%" not in said.err
    assert read_audit(tmp_path / "mine.json").findings == []
