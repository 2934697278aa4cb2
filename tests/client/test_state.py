"""The state of a site: what goes in comes out, two rounds are kept, and a kill never leaves half a file."""

import multiprocessing
import os
import resource
import signal
import time

import pytest
import torch

from client.state import KEPT_ROUNDS, LocalState, StateFolder
from spact_models.errors import UserError


def state_of(number, size=4):
    network = torch.nn.Linear(size, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(number):
        optimizer.zero_grad()
        network(torch.full((3, size), float(number))).square().sum().backward()
        optimizer.step()
    return LocalState(
        completed_round=number,
        privacy={name: value.detach().clone() for name, value in network.state_dict().items()},
        optimizers={"privacy": optimizer.state_dict()},
        buffers={"action.bn.num_batches_tracked": torch.tensor(number), "action.bn.running_mean": torch.ones(2)},
        teacher={"head.weight": torch.full((2, 2), 0.5)},
    )


def same(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return ours == theirs


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_goes_in_comes_out_with_the_optimizer(tmp_path):
    before = state_of(3)
    StateFolder(tmp_path, "run").save(before)
    after = StateFolder(tmp_path, "run").before(4)
    assert same(vars(before), vars(after))
    assert after.optimizers["privacy"]["state"][0]["step"] == 3
    network = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(network.parameters())
    optimizer.load_state_dict(after.optimizers["privacy"])
    assert same(optimizer.state_dict(), before.optimizers["privacy"])


def test_a_site_that_has_played_nothing_begins_with_nothing(tmp_path):
    assert vars(StateFolder(tmp_path, "run").before(1)) == vars(LocalState())
    assert not (tmp_path / "run").exists()


def test_the_state_before_a_round_is_that_of_the_round_before_it(tmp_path):
    states = StateFolder(tmp_path, "run")
    for number in (1, 2, 3, 4):
        states.save(state_of(number))
        assert states.before(number + 1).completed_round == number
        if number > 1:
            assert states.before(number).completed_round == number - 1  # the round played again
    assert states.before(9).completed_round == 4  # the site missed rounds
    assert states.before(3).completed_round == 0  # nothing that old is left


def test_two_rounds_are_kept(tmp_path):
    states = StateFolder(tmp_path, "run")
    for number in range(1, 6):
        states.save(state_of(number))
    assert KEPT_ROUNDS == 2
    assert files(tmp_path / "run") == ["state-000004.pt", "state-000005.pt"]


def test_a_server_that_goes_back_takes_the_site_along(tmp_path):
    """States of the course that was given up neither push out the new ones nor come back."""
    states = StateFolder(tmp_path, "run")
    for number in (5, 6, 3):
        states.save(state_of(number))
    assert files(tmp_path / "run") == ["state-000003.pt"]
    assert states.before(4).completed_round == 3
    assert states.before(7).completed_round == 3


def test_federations_do_not_mix(tmp_path):
    StateFolder(tmp_path, "one").save(state_of(2))
    assert StateFolder(tmp_path, "two").before(3).completed_round == 0


@pytest.mark.parametrize("name", ["../other", "a/b", "..", "", ".hidden", "/tmp/x", "a" * 101, "a\n"])
def test_the_servers_name_for_the_federation_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(UserError, match=r"federation = .* must be a plain name"):
        StateFolder(tmp_path / "state", name)


def test_a_state_that_holds_code_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    (tmp_path / "run").mkdir()
    torch.save({"completed_round": 1, "privacy": {"x": Evil()}}, tmp_path / "run" / "state-000001.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        StateFolder(tmp_path, "run").before(2)
    assert not (tmp_path / "harm").exists()


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path):
    states = StateFolder(tmp_path, "run")
    states.save(state_of(1))
    old, young = tmp_path / "run" / ".state-000002.pt.abc.tmp", tmp_path / "run" / ".state-000002.pt.def.tmp"
    for left in (old, young):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    states.save(state_of(2))
    assert not old.exists()
    assert young.exists()  # perhaps another process is writing it


def _save_for_ever(folder, size):
    number = 0
    while True:
        number += 1
        StateFolder(folder, "run").save(LocalState(number, {"x": torch.full((size,), float(number))}))


@pytest.mark.parametrize("trial", range(8))
def test_killed_while_it_writes_the_last_complete_state_is_found(tmp_path, trial):
    """A real process, a real SIGKILL; at 16 MB a file it is nearly always in the middle of writing."""
    size = 4_000_000
    child = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(tmp_path, size))
    child.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/state-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(0.013 * trial)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    found = StateFolder(tmp_path, "run").before(10**9)
    assert found.completed_round >= 1
    assert torch.equal(found.privacy["x"], torch.full((size,), float(found.completed_round)))


def test_a_disk_without_room_is_said_and_the_last_state_stays(tmp_path):
    """A real refusal by the kernel: no file may grow beyond 4 KiB."""
    folder = StateFolder(tmp_path, "federation")
    folder.save(LocalState(completed_round=1, privacy={"weight": torch.ones(10)}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"site state .*cannot be written \(File too large\)"):
            folder.save(LocalState(completed_round=2, privacy={"weight": torch.ones(100_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.before(3).completed_round == 1
    assert not list(folder.folder.glob(".state-*"))
