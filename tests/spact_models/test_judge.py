"""The judge: it learns what is there, does not learn what is not, and sees what a user would get."""

import copy
import math

import pytest
import torch

from spact_models.anonymizer import Anonymizer, AnonymizerConfig, represent
from spact_models.judge import FrameByFrame, Judge, JudgeSet, attackers, chance
from spact_models.obfuscations import by_name
from spact_models.settings import JudgeConfig
from spact_models.views import to_float_BCTHW

COLORS = torch.tensor([[220, 40, 40], [40, 200, 60], [50, 70, 230]], dtype=torch.uint8)
CPU = torch.device("cpu")


def make_set(videos, seed, clips=2, frames=4, size=16, lead_in=1):
    """Squares on grey: colour is the look, direction of sliding the action, a faint stripe tells the video."""
    generator = torch.Generator().manual_seed(seed)
    look = torch.arange(videos) % 3
    action = torch.arange(videos) // 3 % 2

    def scene(video, start, length):
        out = torch.full((length, size, size, 3), 90, dtype=torch.uint8)
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
    )


def make_judge(steps=40, **more):
    config = JudgeConfig(steps=steps, batch=12, lr=3e-3, train_clips=2, test_clips=2)
    return Judge(config, "tiny", "tiny", CPU, 5, **more)


@pytest.fixture(scope="module")
def sets():
    return tuple(make_set(videos, seed).through(by_name("raw"), CPU) for videos, seed in ((18, 1), (12, 2)))


def relabelled(judged, task, labels):
    return JudgeSet(**{**vars(judged), "labels": {**judged.labels, task: labels}})


def test_every_attacker_learns_what_is_there(sets):
    answers = make_judge().attack(*sets, "look")
    assert answers.keys() == attackers("tiny", "tiny", 3).keys() == {"frame-tiny", "video-tiny"}
    assert all(value > 0.9 for value in answers.values())


def test_the_action_network_learns_the_motion(sets):
    assert make_judge(steps=60).utility(*sets) > 0.9


def test_nobody_learns_what_is_not_there(sets):
    """Labels dealt out at random, over several deals: near one third, far below what the true ones give."""
    train, test = sets
    generator = torch.Generator().manual_seed(3)
    scores = []
    for _ in range(3):
        shuffled = relabelled(train, "look", torch.randint(3, (18,), generator=generator))
        asked = relabelled(test, "look", torch.randint(3, (12,), generator=generator))
        scores += make_judge(steps=25).attack(shuffled, asked, "look").values()
    assert sum(scores) / len(scores) < 0.6


def test_what_a_transform_takes_away_cannot_be_learned():
    """The one-bit difference hides the colour; the same judge on the same videos then guesses."""
    train, test = (
        make_set(videos, seed).through(by_name("difference1bit"), CPU) for videos, seed in ((18, 1), (12, 2))
    )
    assert max(make_judge().attack(train, test, "look").values()) < 0.75


def test_the_same_judge_gives_the_same_answer_and_touches_nobodys_randomness(sets):
    torch.manual_seed(1)
    first = make_judge(steps=4).attack(*sets, "look")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert make_judge(steps=4).attack(*sets, "look") == first
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_labels_are_neither_learned_nor_asked(sets):
    train, test = sets
    blind = relabelled(train, "look", torch.where(torch.arange(18) < 9, train.labels["look"], -1))
    asked = relabelled(test, "look", torch.where(torch.arange(12) == 7, test.labels["look"], -1))
    assert all(value in (0.0, 1.0) for value in make_judge(steps=5).attack(blind, asked, "look").values())  # one video
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
    scores = make_judge()._scores(Reads(), made)
    torch.testing.assert_close(scores[:, 1], torch.tensor([0.6, 0.551]), atol=2e-3, rtol=0)


def test_retrieval_matches_starts_to_ends_of_videos_that_look_alike(sets):
    found = make_judge(steps=60).retrieval(*sets)
    assert found["all_chance"] == pytest.approx(1 / 12)
    assert found["same_source_chance"] == pytest.approx(1 / 6)
    assert found["same_source_queries"] == 12
    assert found["all"] > 3 * found["all_chance"]
    assert found["same_source"] >= found["all"]  # fewer candidates cannot be harder


def test_retrieval_of_blank_frames_scores_chance(sets):
    blank = [JudgeSet(**{**vars(one), "views_VKTHWC": torch.zeros_like(one.views_VKTHWC)}) for one in sets]
    found = make_judge(steps=3).retrieval(*blank)
    assert found["all"] == pytest.approx(found["all_chance"])
    assert found["same_source"] == pytest.approx(found["same_source_chance"])


def test_early_views_are_held_against_late_ones(sets):
    _, test = sets

    class Mean(torch.nn.Module):
        def forward(self, frames_NCHW):
            return torch.stack([frames_NCHW.mean(dim=(1, 2, 3)), torch.ones(len(frames_NCHW))], dim=1)

    levels = torch.tensor([10, 30, 200, 220], dtype=torch.uint8)
    views = levels[None, :, None, None, None, None].expand(12, 4, 1, 8, 8, 3).contiguous()
    early, late = make_judge()._halves(Mean(), JudgeSet(**{**vars(test), "views_VKTHWC": views}))
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


def test_a_frame_attacker_is_the_mean_of_its_frames_log_probabilities():
    torch.manual_seed(0)
    picture = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5))
    network, clip = FrameByFrame(picture).eval(), torch.rand(2, 3, 6, 8, 8)
    expected = torch.stack([picture(clip[:, :, t]).log_softmax(1) for t in range(6)]).mean(0)
    torch.testing.assert_close(network(clip), expected)
    seen = []
    picture.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    network.train()(clip)
    assert seen == [2 * 2]  # two frames of each clip in a step


def test_steps_are_counted_as_announced(sets):
    done = []
    judge = make_judge(steps=3, on_step=lambda: done.append(1))
    judge.utility(*sets)
    judge.attack(*sets, "look")
    judge.retrieval(*sets)
    assert len(done) == judge.steps_of(attributes=1, with_action=True, with_retrieval=True) == 3 * 4


def test_bf16_on_the_cpu_judges_in_float32(sets):
    """Its gradients of 3-D convolutions are not to be trusted there; see Judge._autocast."""
    answers = [make_judge(steps=5, precision=precision).attack(*sets, "look") for precision in ("fp32", "bf16")]
    assert answers[0] == answers[1]
