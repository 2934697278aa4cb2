"""What a suite asks the reconstruction attacker: the true frames back, whatever the representation hid."""

import torch

from client.held import Read, build_set
from client.video.cache import FrameCache
from client.video.rows import read_rows
from simulations.protocols import attacks
from simulations.protocols.bench import BLACKENED, Bench
from simulations.protocols.suite import Suite
from spact_models import inversion
from spact_models.obfuscations import by_name
from spact_models.run_config import load_settings


class Bar:
    def set_postfix_str(self, text):
        """Which representation is at work: nobody looks."""

    def update(self) -> None:
        pass


def test_blackened_people_are_to_be_restored_not_the_black(squares, fast, tmp_path, monkeypatch) -> None:
    asked = []
    whole = inversion.invert
    monkeypatch.setattr(inversion, "invert", lambda *sets, **more: asked.append(sets) or whole(*sets, **more))
    settings = load_settings(fast)
    rows, cache = read_rows(squares), FrameCache(tmp_path / "cache", settings.clip.size_px)
    pair = tuple(
        build_set([row for row in rows if row.split == split], cache, settings.clip, Read(1), {})
        for split in ("train", "test")
    )
    black = tuple(inversion.replace(held, clips_MTHWC=held.clips_MTHWC // 8) for held in pair)
    bench = Bench([], [], videos=pair, blackened=black)
    suite = Suite("identity", (), (BLACKENED,), ("frame-convnet",), retrieval=False, inversion=True)
    with attacks.Attacks(suite, settings, bench, torch.device("cpu"), Bar()) as attacked:
        ((_, found),) = attacked.on({BLACKENED: by_name("raw")})
    (train, train_seen, test, test_seen, *_) = asked[0]
    assert train is pair[0]
    assert test is pair[1]
    assert torch.equal(train_seen.clips_MTHWC, black[0].clips_MTHWC[:, 1:])
    assert torch.equal(test_seen.clips_MTHWC, black[1].clips_MTHWC[:, 1:])
    figures = found["reconstruction", "", 0]
    assert figures["psnr_db"].shape == (test.videos,)
    assert 0 < figures["psnr_db"].min() <= figures["psnr_db"].max() < inversion.EQUAL_DB


def test_a_difference_shows_people_where_they_are_and_where_they_were(squares, fast, tmp_path) -> None:
    """What a person left behind in the frame before is no background."""
    settings = load_settings(fast)
    rows, cache = read_rows(squares)[:2], FrameCache(tmp_path / "cache", settings.clip.size_px)
    held = build_set(rows, cache, settings.clip, Read(2), {})
    moving = (held.clips_MTHWC.int() - 90).abs().amax(dim=-1) > 40  # the squares on their grey ground
    held = inversion.replace(held, person_MTHW=moving)
    still, difference = (held.through(by_name(name), torch.device("cpu")) for name in ("raw", "difference1bit"))
    assert torch.equal(still.person_MTHW, moving[:, 1:])
    assert torch.equal(difference.person_MTHW, moving[:, 1:] | moving[:, :-1])
    assert (moving[:, :-1] & ~moving[:, 1:]).any()
