"""The judge: it learns what is there, does not learn what is not, and sees what a user would get."""

import copy
import math
import threading
from functools import partial

import pytest
import torch

from spact_models import judge_set
from spact_models.anonymizer import Anonymizer, AnonymizerConfig, represent
from spact_models.attackers import NETWORKS, TREES, Attacker
from spact_models.errors import UserError
from spact_models.game_settings import JudgeConfig
from spact_models.judge import Judge, JudgeSet, chance
from spact_models.judge_set import MID_GREY, room
from spact_models.obfuscations import by_name
from spact_models.views import to_float_BCTHW
from spact_models.workshop import side_by_side

COLORS = torch.tensor([[220, 40, 40], [40, 200, 60], [50, 70, 230]], dtype=torch.uint8)
CPU = torch.device("cpu")
PAIR = ("frame-convnet", "video-tiny")
ALL = (*PAIR, TREES)


def make_set(videos, seed, clips=2, frames=4, size=16, lead_in=1, stripe=True):
    """Squares on grey: colour is the look, direction of sliding the action, a faint stripe tells the video."""
    generator = torch.Generator().manual_seed(seed)
    look = torch.arange(videos) % 3
    action = torch.arange(videos) // 3 % 2

    def scene(video, start, length):
        out = torch.full((length, size, size, 3), 90, dtype=torch.uint8)
        if stripe:
            out[:, :, video % size] = 40 + 9 * video
        for t in range(length):
            place = (start + 2 * t) % (size - 5)
            y, x = (place, 5) if action[video] else (5, place)
            out[t, y : y + 5, x : x + 5] = COLORS[look[video]]
        return out

    starts = torch.randint(8, (videos, clips), generator=generator)
    clip_list = [scene(v, int(starts[v, c]), lead_in + frames) for v in range(videos) for c in range(clips)]
    views = [torch.stack([scene(v, 3 * k, lead_in + 1) for k in range(4)]) for v in range(videos)]
    return JudgeSet(
        clips_MTHWC=torch.stack(clip_list),
        video_M=torch.arange(videos).repeat_interleave(clips),
        views_VKTHWC=torch.stack(views),
        labels={"action": action, "look": look},
        group_V=torch.arange(videos) % 2,
        lead_in_frames=lead_in,
        halves_V2THWC=torch.stack(
            [torch.stack([scene(v, start, lead_in + frames) for start in (0, 12)]) for v in range(videos)]
        ),
        person_MTHW=torch.stack(clip_list).sub(90).ne(0).any(dim=-1),
        attributes_VA=torch.stack([look == 0, action == 1], dim=1).to(torch.int8),
    )


def make_judge(steps=40, **more):
    config = JudgeConfig(steps=steps, batch=12, lr=3e-3, train_clips=2, test_clips=2)
    return Judge(config, "tiny", CPU, 5, **more)


def attack(judge, train, test, task, names=ALL):
    return {name: judge.attack(train, test, task, name).top1 for name in names}


@pytest.fixture(scope="module")
def sets():
    return tuple(make_set(videos, seed).through(by_name("raw"), CPU) for videos, seed in ((18, 1), (12, 2)))


def relabelled(judged, task, labels):
    return JudgeSet(**{**vars(judged), "labels": {**judged.labels, task: labels}})


def test_every_attacker_learns_what_is_there(sets):
    answers = attack(make_judge(), *sets, "look")
    assert all(value > 0.9 for value in answers.values())


def test_the_action_network_learns_the_motion(sets):
    assert make_judge(steps=60).action(*sets).top1 > 0.9


def test_nobody_learns_what_is_not_there(sets):
    """Labels dealt out at random, over several deals: near one third, far below what the true ones give."""
    train, test = sets
    generator = torch.Generator().manual_seed(3)
    scores = []
    for _ in range(3):
        shuffled = relabelled(train, "look", torch.randint(3, (18,), generator=generator))
        asked = relabelled(test, "look", torch.randint(3, (12,), generator=generator))
        scores += attack(make_judge(steps=25), shuffled, asked, "look").values()
    assert sum(scores) / len(scores) < 0.6


def test_what_a_transform_takes_away_cannot_be_learned():
    """The one-bit difference hides the colour; the same judge on the same videos then guesses."""
    train, test = (
        make_set(videos, seed).through(by_name("difference1bit"), CPU) for videos, seed in ((18, 1), (12, 2))
    )
    assert max(attack(make_judge(), train, test, "look").values()) < 0.75


def test_the_same_judge_gives_the_same_answer_and_touches_nobodys_randomness(sets):
    torch.manual_seed(1)
    first = attack(make_judge(steps=4), *sets, "look")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert attack(make_judge(steps=4), *sets, "look") == first
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_labels_are_neither_learned_nor_asked(sets):
    train, test = sets
    blind = relabelled(train, "look", torch.where(torch.arange(18) < 9, train.labels["look"], -1))
    asked = relabelled(test, "look", torch.where(torch.arange(12) == 7, test.labels["look"], -1))
    answer = make_judge(steps=5).attack(blind, asked, "look", "frame-convnet")
    assert len(answer.hit_V) == len(answer.scores_VK) == len(answer.labels_V) == 1
    assert chance(asked, "look") == 1.0


def test_chance_is_the_majority_on_the_test_videos(sets):
    _, test = sets
    assert chance(test, "look") == pytest.approx(1 / 3)
    assert chance(relabelled(test, "look", torch.tensor([0] * 7 + [1] * 3 + [-1] * 2)), "look") == 0.7
    assert math.isnan(chance(relabelled(test, "look", torch.full((12,), -1)), "look"))


def test_a_videos_score_is_the_mean_over_its_clips():
    """A network that reads its answer off the first pixel: two clips say 0, one says 1 more loudly."""

    class Reads(torch.nn.Module):
        def forward(self, clip_BCTHW):
            says_1 = clip_BCTHW[:, 0, 0, 0, 0]
            return torch.stack([1 - says_1, says_1], dim=1).clamp(min=1e-6).log()

    clips = torch.zeros(5, 2, 8, 8, 3, dtype=torch.uint8)
    clips[:, :, :, :, 0] = torch.tensor([102, 102, 255, 255, 26])[:, None, None, None]  # 0.4 0.4 1.0 | 1.0 0.1
    views = torch.zeros(2, 2, 1, 8, 8, 3, dtype=torch.uint8)
    made = JudgeSet(clips, torch.tensor([0, 0, 0, 1, 1]), views, {}, torch.zeros(2), 0)
    scores = make_judge()._scores(Reads(), made, lambda logits: logits.softmax(dim=1))
    torch.testing.assert_close(scores[:, 1], torch.tensor([0.6, 0.551]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("attacker", [*PAIR, "frame-vit"])
def test_retrieval_matches_starts_to_ends_of_videos_that_look_alike(sets, attacker):
    found = make_judge(steps=60).retrieval(*sets, attacker)
    assert found["all"].chance == pytest.approx(1 / 12)
    assert found["same_source"].chance == pytest.approx(1 / 6)
    assert len(found["all"].hit_V) == len(found["same_source"].hit_V) == 12
    assert found["all"].top1 > 2 * found["all"].chance
    assert found["same_source"].top1 >= found["all"].top1  # fewer candidates cannot be harder


@pytest.mark.parametrize("attacker", PAIR)
def test_retrieval_of_blank_frames_scores_chance(sets, attacker):
    def blank(held):
        empty = {name: torch.zeros_like(getattr(held, name)) for name in ("views_VKTHWC", "halves_V2THWC")}
        return JudgeSet(**{**vars(held), **empty})

    found = make_judge(steps=3).retrieval(*map(blank, sets), attacker)
    assert found["all"].top1 == pytest.approx(found["all"].chance)
    assert found["same_source"].top1 == pytest.approx(found["same_source"].chance)


def test_a_video_level_retrieval_sees_the_halves_and_nothing_else(sets):
    """Views blackened: no change. Halves exchanged among the videos: another answer."""
    judge = make_judge(steps=3)
    first = judge.retrieval(*sets, "video-tiny")["all"].hit_V
    without = [JudgeSet(**{**vars(one), "views_VKTHWC": torch.zeros_like(one.views_VKTHWC)}) for one in sets]
    assert torch.equal(judge.retrieval(*without, "video-tiny")["all"].hit_V, first)
    bare = [JudgeSet(**{**vars(one), "halves_V2THWC": None}) for one in sets]
    with pytest.raises(ValueError, match="halves"):
        judge.retrieval(*bare, "video-tiny")


@pytest.mark.parametrize("attacker", ["frame-convnet", TREES])
def test_attributes_are_learned_together(sets, attacker):
    train, test = sets
    known = make_judge(steps=60).attributes(train, test, attacker)
    assert known.scores_VK.shape == known.labels_V.shape == (12, 2)
    assert ((known.scores_VK[:, 0] > 0.5) == (known.labels_V[:, 0] == 1)).all()  # red or not: seen in a frame


def test_who_has_learned_its_own_clips_says_so_and_who_has_not_too(sets):
    """Random labels of 18 videos cannot be known after ten steps; the true looks are after eighty."""
    train, test = sets
    assert make_judge(steps=80).attack(train, test, "look", "frame-convnet").learned > 0.95
    shuffled = relabelled(train, "look", torch.randint(3, (18,), generator=torch.Generator().manual_seed(3)))
    assert make_judge(steps=10).attack(shuffled, test, "look", "frame-convnet").learned < 0.8
    assert make_judge(steps=60).attributes(train, test, "frame-convnet").learned > 0.9


def test_what_was_learned_is_counted_over_the_last_tenth_of_the_steps(sets, monkeypatch):
    """Each clip before its own step; a network that answers class 1 is right as often as the batches show it."""
    from spact_models import judge as module

    shown = []
    hits_of = module.hits
    monkeypatch.setattr(module, "hits", lambda scores, labels: shown.append(labels) or hits_of(scores, labels))
    monkeypatch.setattr(module.Judge, "_descend", lambda self, *_: self.on_step())  # nothing is learned

    class Stubborn(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, clip_BCTHW):
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(clip_BCTHW), 3) + self.weight

    answer = make_judge(steps=30).classify(*sets, "look", "stubborn", Attacker(lambda *_: Stubborn(), "frame"))
    last_three = torch.cat(shown[:3])  # the test's own come after them
    assert len(shown) == 4
    assert answer.learned == pytest.approx(float((last_three == 1).float().mean()))


def test_right_is_a_class_or_each_known_attribute():
    from spact_models.judge import _right

    assert float(_right(torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0, 0]))) == pytest.approx(
        2 / 3
    )
    logits = torch.tensor([[2.0, -1.0], [-3.0, 4.0]])
    assert float(_right(logits, torch.tensor([[1, 1], [0, -1]]))) == pytest.approx(2 / 3)


def test_the_known_loss_is_the_loop_over_what_is_known():
    from spact_models.judge import _known_binary_cross_entropy

    logits, labels = torch.tensor([[0.3, -2.0], [1.5, 0.1]]), torch.tensor([[1, -1], [0, 1]])
    each = [
        math.log(1 + math.exp(-float(logits[b, a]) if labels[b, a] == 1 else float(logits[b, a])))
        for b in range(2)
        for a in range(2)
        if labels[b, a] >= 0
    ]
    assert float(_known_binary_cross_entropy(logits, labels)) == pytest.approx(sum(each) / 3)
    assert float(_known_binary_cross_entropy(logits, torch.full((2, 2), -1))) == 0.0


def test_crops_keep_the_person_or_the_place(sets):
    _, test = sets
    person, place = test.cropped(True), test.cropped(False)
    mask = test.person_MTHW
    assert mask.shape == test.clips_MTHWC.shape[:-1]  # the lead-in has left the masks, too
    assert 0.05 < mask.float().mean() < 0.5
    for crop, kept in ((person, mask), (place, ~mask)):
        assert torch.equal(crop.clips_MTHWC[kept], test.clips_MTHWC[kept])
        assert (crop.clips_MTHWC[~kept] == MID_GREY).all()
        assert torch.equal(crop.views_VKTHWC, test.views_VKTHWC)
    with pytest.raises(ValueError, match="masks"):
        JudgeSet(**{**vars(test), "person_MTHW": None}).cropped(True)


def test_a_person_is_known_from_the_person_and_not_from_the_place():
    judge = make_judge()
    sets = [make_set(videos, seed, stripe=False).through(by_name("raw"), CPU) for videos, seed in ((18, 1), (12, 2))]
    person, place = (
        attack(judge, *(one.cropped(keep) for one in sets), "look", ["frame-convnet"])["frame-convnet"]
        for keep in (True, False)
    )
    assert person > 0.9
    assert place < 0.75


def test_early_views_are_held_against_late_ones(sets):
    _, test = sets

    class Mean(torch.nn.Module):
        def forward(self, clip_NCTHW):
            return torch.stack([clip_NCTHW.mean(dim=(1, 2, 3, 4)), torch.ones(len(clip_NCTHW))], dim=1)

    levels = torch.tensor([10, 30, 200, 220], dtype=torch.uint8)
    views = levels[None, :, None, None, None, None].expand(12, 4, 1, 8, 8, 3).contiguous()
    judged = JudgeSet(**{**vars(test), "views_VKTHWC": views})
    early, late = make_judge()._ends(Mean(), NETWORKS["frame-convnet"], judged)
    torch.testing.assert_close(early[:, 0] / early[:, 1], torch.full((12,), 20 / 255))
    torch.testing.assert_close(late[:, 0] / late[:, 1], torch.full((12,), 210 / 255))


@pytest.mark.parametrize("kind", ["frame", "motion"])
def test_an_attacker_gets_8_bit_frames_without_lead_in(kind):
    torch.manual_seed(0)
    f_A = Anonymizer(AnonymizerConfig(kind=kind, base_channels=4, depth=1, size_px=16, stride_frames=1)).train()
    before = copy.deepcopy(f_A.state_dict())
    raw = make_set(7, 3)
    out = raw.through(f_A, CPU, batch=3)
    assert out.lead_in_frames == 0
    assert out.clips_MTHWC.dtype == out.views_VKTHWC.dtype == torch.uint8
    assert out.clips_MTHWC.shape == (14, 4, 16, 16, 3)
    assert out.views_VKTHWC.shape == (7, 4, 1, 16, 16, 3)
    assert out.halves_V2THWC.shape == (7, 2, 4, 16, 16, 3)
    assert out.videos == 7
    with torch.no_grad():
        clips = represent(f_A.eval(), to_float_BCTHW(raw.clips_MTHWC), 1).permute(0, 2, 3, 4, 1) * 255
        view = represent(f_A, to_float_BCTHW(raw.views_VKTHWC[5, 2:3]), 1).permute(0, 2, 3, 4, 1)[0] * 255
    assert (out.clips_MTHWC - clips).abs().max() <= 0.5001
    assert (out.views_VKTHWC[5, 2] - view).abs().max() <= 0.5001
    assert torch.equal(out.video_M, raw.video_M)
    assert out.labels == raw.labels
    f_A.train()
    raw.through(f_A, CPU)
    assert f_A.training  # the caller's network is left as it was
    assert all(torch.equal(value, before[name]) for name, value in f_A.state_dict().items())


def test_raw_is_the_frames_themselves():
    raw = make_set(4, 3)
    out = raw.through(by_name("raw"), CPU)
    assert torch.equal(out.clips_MTHWC, raw.clips_MTHWC[:, 1:])
    assert torch.equal(out.views_VKTHWC, raw.views_VKTHWC[:, :, 1:])


def test_every_network_takes_the_steps_of_its_budget(sets):
    done = []
    judge = make_judge(steps=3, on_step=lambda: done.append(1))
    judge.action(*sets)
    judge.attack(*sets, "look", "frame-convnet")
    judge.attributes(*sets, "frame-convnet")
    judge.retrieval(*sets, "frame-convnet")
    assert len(done) == 3 * 4
    judge.attack(*sets, "look", TREES)
    judge.attributes(*sets, TREES)
    assert len(done) == 3 * 6  # a bar's length does not depend on who is asked


def test_jobs_that_wait_are_not_begun_when_one_fails():
    begun, told = [], threading.Event()
    threads = torch.get_num_threads()

    def fail():
        raise RuntimeError("the first")

    def wait(number):
        begun.append(number)
        assert told.wait(60)

    torch.set_num_threads(2)
    try:
        jobs = {0: fail, **{number: partial(wait, number) for number in range(1, 9)}}
        with pytest.raises(RuntimeError, match="the first"):
            side_by_side(jobs, CPU, told.set)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert len(begun) < 8


def test_bf16_on_the_cpu_judges_in_float32(sets):
    """Its gradients of 3-D convolutions are not to be trusted there; see Judge._autocast."""
    answers = [attack(make_judge(steps=5, precision=precision), *sets, "look") for precision in ("fp32", "bf16")]
    assert answers[0] == answers[1]


def test_many_frames_lie_on_a_disk_and_leave_nothing_behind(tmp_path, monkeypatch):
    raw = make_set(7, 3)
    expected = raw.through(by_name("greyscale"), CPU)
    monkeypatch.setattr(judge_set, "LARGE_BYTES", 100)
    monkeypatch.setattr(judge_set.tempfile, "tempdir", str(tmp_path))
    found = raw.through(by_name("greyscale"), CPU)
    assert torch.equal(found.clips_MTHWC, expected.clips_MTHWC)
    assert torch.equal(found.views_VKTHWC, expected.views_VKTHWC)
    assert not list(tmp_path.iterdir())  # no name is left that somebody else could open
    with pytest.raises(UserError, match=r"GiB of frames to judge: .* has no room"):
        room((2**20, 2**30))
