import numpy as np
import pytest

from client.video import sampling


def walk(n_frames, steps):
    """The slow twin of reflection: walk through the video, turning round at its ends."""
    place, direction, seen = 0, 1, []
    for _ in range(steps):
        seen.append(place)
        if n_frames == 1:
            continue
        if not 0 <= place + direction < n_frames:
            direction = -direction
        place += direction
    return seen


@pytest.mark.parametrize("n_frames", [1, 2, 3, 5, 16])
def test_reflection_is_a_walk_that_turns_round_at_the_ends(n_frames):
    assert sampling.reflect(np.arange(50), n_frames).tolist() == walk(n_frames, 50)
    assert sampling.reflect(-np.arange(50), n_frames).tolist() == walk(n_frames, 50)


def test_train_clips_reach_every_start_and_only_those():
    rng = np.random.default_rng(0)
    clips = [sampling.train_clip(20, 4, 3, 1, rng) for _ in range(400)]
    for clip in clips:
        assert clip.dtype == np.int64
        assert np.diff(clip).tolist() == [3, 3, 3, 3]
    # lead-in + clip = 5 numbers, 3 apart: 13 frames, so the start can be 0 .. 7
    assert {int(clip[0]) for clip in clips} == set(range(8))


@pytest.mark.parametrize("n_frames", [1, 2, 9, 12])
def test_a_short_video_is_extended_by_reflection(n_frames):
    expected = walk(n_frames, 13)[::3]
    assert sampling.train_clip(n_frames, 4, 3, 1, np.random.default_rng(0)).tolist() == expected
    assert sampling.test_clips(n_frames, 4, 3, 1, clips=3).tolist() == [expected] * 3


@pytest.mark.parametrize(("n_frames", "clips"), [(13, 5), (14, 5), (20, 5), (100, 5), (100, 2), (57, 7)])
def test_test_clips_start_evenly_from_the_first_frame_to_the_last(n_frames, clips):
    found = sampling.test_clips(n_frames, 4, 3, 1, clips)
    last = n_frames - 13
    for i, clip in enumerate(found):
        exact = i * last / (clips - 1)
        assert abs(clip[0] - exact) <= 0.5
        assert (clip - clip[0]).tolist() == [0, 3, 6, 9, 12]
    assert found[0, 0] == 0
    assert found[-1, -1] == n_frames - 1


def test_one_test_clip_is_the_middle_one_and_five_are_the_default():
    assert sampling.test_clips(33, 4, 1, 0, clips=1).tolist() == [[14, 15, 16, 17]]
    assert sampling.test_clips(33, 4, 1, 0).shape == (5, 4)


def test_views_are_every_pair_of_different_times_equally_often():
    rng = np.random.default_rng(0)
    counts = np.zeros((6, 6), int)
    for _ in range(4000):
        first, second = sampling.view_pair(8, 2, 1, rng)
        assert first[1] - first[0] == second[1] - second[0] == 2
        counts[first[1] - 2, second[1] - 2] += 1
    assert (np.diag(counts) == 0).all()
    expected = 4000 / 30
    chi_square = ((counts[~np.eye(6, dtype=bool)] - expected) ** 2 / expected).sum()
    assert chi_square < 58.3  # 29 degrees of freedom, one chance in a thousand


def test_views_of_a_video_too_short_for_its_lead_in_still_differ_in_time():
    rng = np.random.default_rng(0)
    for n_frames in (2, 3, 4, 5):
        for _ in range(50):
            pair = sampling.view_pair(n_frames, 2, 2, rng)
            assert pair[0, -1] != pair[1, -1]
            assert pair.min() >= 0
            assert pair.max() < n_frames
            for view in pair:  # the lead-in of time t is t-4, t-2, reflected at frame 0 and at the end
                t = int(view[-1])
                period = walk(n_frames, 40)
                assert view.tolist() == [period[abs(t - 4)], period[abs(t - 2)], t]


def test_one_frame_gives_two_equal_views():
    assert sampling.view_pair(1, 2, 1, np.random.default_rng(0)).tolist() == [[0, 0], [0, 0]]


def test_a_view_of_several_frames_is_a_run_behind_its_lead_in_and_the_two_start_at_different_times():
    rng = np.random.default_rng(4)
    starts = set()
    for _ in range(300):
        pair = sampling.view_pair(12, 2, 1, rng, view_frames=3)
        assert pair.shape == (2, 4)
        assert np.all(np.diff(pair) == 2)  # nothing is reflected where the video has the room
        assert pair.min() >= 0
        assert pair.max() <= 11
        assert pair[0, 0] != pair[1, 0]
        starts.add(tuple(pair[:, 0].tolist()))
    assert len(starts) == 6 * 5  # first frames 0 to 5, every ordered pair of different ones
    short = sampling.view_pair(5, 2, 1, rng, view_frames=4)  # no room: reflected, and still two times
    assert short[0].tolist() != short[1].tolist()
    assert short.min() >= 0
    assert short.max() <= 4


def test_the_seed_decides():
    draws = [
        [sampling.train_clip(500, 8, 2, 1, np.random.default_rng(seed)).tolist() for _ in range(2)] for seed in (1, 2)
    ]
    assert draws[0][0] == draws[0][1]
    assert draws[0][0] != draws[1][0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 4, 1, 0), "n_frames"),
        ((9, 0, 1, 0), "clip_frames"),
        ((9, 4, 0, 0), "stride_frames"),
        ((9, 4, 1, -1), "lead_in"),
    ],
)
def test_senseless_lengths_are_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=name):
        sampling.train_clip(*arguments, np.random.default_rng(0))
    with pytest.raises(ValueError, match=name):
        sampling.test_clips(*arguments)
    with pytest.raises(ValueError, match="clips"):
        sampling.test_clips(9, 4, 1, 0, clips=0)
