"""What a comparison is made of: equal steps, cells by name, the folder that goes on with its own plan and no other."""

import json
from dataclasses import replace

import pytest

from simulations.compare.folder import ComparisonFolder, mark_begun, write_record
from simulations.compare.plan import ARMS, Cell, Plan, parse_names, parse_seeds, pooled, steps_of_run
from spact_models.errors import UserError
from spact_models.run_config import load_settings


def make_plan(fast, **changes):
    plan = Plan(
        manifest="/data/m.csv",
        manifest_sha256="00",
        views="",
        views_sha256="",
        sites=3,
        seeds=(0, 1),
        partitions=("iid", "action:0.3"),
        arms=ARMS,
        baselines=("raw", "greyscale"),
        task="identity",
        attackers=(),
        version="1",
        settings=load_settings(fast).flat(),
    )
    return replace(plan, **changes)


@pytest.mark.parametrize("sites", [1, 2, 5])
@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_pooled_rows_take_the_steps_of_all_sites_together_in_as_many_rounds(sites, preset):
    settings = load_settings({"preset": preset, "simulation.sites": sites})
    alone = pooled(settings, sites)
    assert alone.total_rounds == settings.total_rounds
    assert steps_of_run(alone, 1) == steps_of_run(settings, sites)
    assert steps_of_run(alone, 1).total == sites * steps_of_run(settings, 1).total
    assert alone.batch == settings.batch


@pytest.mark.parametrize("joint", [False, True])
def test_the_steps_are_those_of_the_schedule_counted_one_by_one(fast, joint):
    chosen = {"rounds.warmup": 2, "rounds.minimax": 3, "rounds.cycles": 4, "game.joint_step": joint}
    settings = load_settings({**fast, **chosen})
    anonymizer = action = privacy = 0
    for _site in range(5):
        for number in range(1, settings.total_rounds + 1):
            if settings.phase(number) == "warmup":
                anonymizer, action, privacy = anonymizer + 2, action + 2, privacy + 2
                continue
            action, privacy = action + 1, privacy + 1  # catching up
            for _cycle in range(4):
                anonymizer, action, privacy = anonymizer + 1, action + (1 if joint else 2), privacy + 2
    found = steps_of_run(settings, 5)
    assert (found.anonymizer, found.action, found.privacy) == (anonymizer, action, privacy)
    assert found.total == anonymizer + action + privacy


def test_every_arm_has_its_cells_and_shares_what_it_can(fast):
    plan = make_plan(fast)
    cells = plan.cells()
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) == 2 * (1 + 2 + 2 * 3 + 2)
    assert names[:3] == ["centralized-seed0", "federated-iid-seed0", "federated-action_0.3-seed0"]
    assert "local-only-action_0.3-site3-seed1" in names
    assert names[-1] == "baseline-greyscale-seed1"
    for seed in plan.seeds:
        alone = [plan.steps_of(Cell("local-only", seed, "iid", site)).total for site in (1, 2, 3)]
        together = plan.steps_of(Cell("federated", seed, "iid")).total
        assert sum(alone) == together == plan.steps_of(Cell("centralized", seed)).total
    assert plan.steps_of(Cell("raw", 0)) is None
    assert make_plan(fast, arms=("federated",)).cells() == [c for c in cells if c.arm == "federated"]


def test_a_cell_has_its_own_seed_and_partition_and_everything_else_from_the_plan(fast):
    plan = make_plan(fast, settings=load_settings({**fast, "strategy.name": "fedprox", "game.omega": 0.5}).flat())
    federated = plan.settings_of(Cell("federated", 1, "action:0.3"))
    assert (federated.seed, federated.simulation.partition_by, federated.simulation.sites) == (1, "action:0.3", 3)
    assert (federated.strategy.name, federated.game.omega) == ("fedprox", 0.5)
    for cell in (Cell("centralized", 1), Cell("local-only", 1, "iid", 2)):
        assert plan.settings_of(cell).strategy.name == "fedavg"  # nobody there to be pulled towards
        assert plan.settings_of(cell).game.omega == 0.5


def test_lists_on_the_command_line():
    assert parse_seeds("0, 2,1") == (0, 2, 1)
    assert parse_names("--arms", "federated,", ARMS) == ("federated",)
    for text, wrong in (("0,x", "x"), ("-1", "-1"), ("1,1", "twice"), (" ,", "nothing")):
        with pytest.raises(UserError, match=wrong):
            parse_seeds(text)
    with pytest.raises(UserError, match="--arms fed: must be among centralized"):
        parse_names("--arms", "fed", ARMS)


def test_a_folder_goes_on_with_its_own_plan_and_names_what_differs_in_another(fast, tmp_path):
    plan = make_plan(fast)
    folder = ComparisonFolder(tmp_path / "c")
    with folder.held():
        folder.begin(plan)
    with folder.held():
        folder.begin(make_plan(fast))
    changed = {**plan.settings, "game.omega": 0.25}
    for other, key in (
        (replace(plan, task="source", sites=2), "sites = 3, asked for is 2"),
        (replace(plan, settings=changed), r"settings.game.omega = 1.0, asked for is 0.25"),
        (replace(plan, manifest_sha256="11"), "manifest_sha256"),
    ):
        with pytest.raises(UserError, match=key), folder.held():
            folder.begin(other)
    assert json.loads((tmp_path / "c" / "plan.json").read_text())["plan"]["sites"] == 3


def test_a_setting_younger_than_the_folder_had_its_default(fast, tmp_path):
    folder, plan = ComparisonFolder(tmp_path), make_plan(fast)
    folder.begin(plan)
    file = tmp_path / "plan.json"
    written = json.loads(file.read_text())
    assert written["plan"].pop("settings.rounds.sites") == 0
    file.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"settings\.rounds\.sites = 0, asked for is 2"):
        folder.begin(make_plan({**fast, "rounds.sites": 2}))
    folder.begin(plan)


def test_a_folder_takes_further_cells_of_the_same_kind(fast, tmp_path):
    folder = ComparisonFolder(tmp_path / "c")
    further = ({}, {"seeds": (0, 1, 2)}, {"partitions": ("iid", "site")}, {"arms": ("federated",)}, {"baselines": ()})
    for more in further:
        plan = replace(make_plan(fast), **more)
        with folder.held():
            folder.begin(plan)
        assert json.loads((tmp_path / "c" / "plan.json").read_text())["plan"] == plan.to_json()


def test_a_folder_that_is_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="in use by something else"), ComparisonFolder(tmp_path).held():
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]
    with pytest.raises(UserError, match="must be a folder"), ComparisonFolder(tmp_path / "note.txt").held():
        pass


def test_two_comparisons_do_not_work_in_one_folder(tmp_path):
    one, other = ComparisonFolder(tmp_path / "c"), ComparisonFolder(tmp_path / "c")
    with one.held(), pytest.raises(UserError, match="at work in it"), other.held():
        pass
    with ComparisonFolder(tmp_path / "c").held():
        pass  # free again


def test_a_half_made_cell_is_begun_anew_a_finished_one_kept_and_a_strange_folder_never_removed(tmp_path):
    folder, cell = ComparisonFolder(tmp_path / "c"), Cell("centralized", 0)
    part = folder.begin_cell(cell)
    mark_begun(part)
    (part / "checkpoints").mkdir()
    (part / "checkpoints" / "round-0001.safetensors").write_text("half")
    assert folder.finished(cell) is None
    again = folder.begin_cell(cell)
    assert again == part
    assert not list(part.iterdir())
    mark_begun(part)
    write_record(part, {"training": None})
    assert folder.finished(cell) is None  # written, but not yet under its own name
    folder.finish_cell(cell)
    assert folder.finished(cell)["training"] is None
    with pytest.raises(UserError, match="no finished cell of ours"):
        folder.begin_cell(cell)
    other = Cell("centralized", 1)
    strange = folder.cell_path(other).with_name("centralized-seed1.part")
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not begun by fedspact compare"):
        folder.begin_cell(other)
    assert (strange / "thesis.txt").read_text() == "mine"
