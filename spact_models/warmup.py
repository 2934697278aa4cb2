"""The three initialisations before the game (SPAct, section 3.3): f_A copies, f_T and f_B learn on its copy."""

from __future__ import annotations

from spact_models.game_settings import GameConfig
from spact_models.losses import reconstruction
from spact_models.minimax import Losses, Players, critics_move
from spact_models.views import Batch


def warmup_step(players: Players, batch: Batch, config: GameConfig) -> Losses:
    """One step of each network: f_A by L1 to its target picture, then f_T by L_T and f_B by L_B on what f_A puts out.

    The target is the frame itself for a ``frame`` anonymizer and the motion picture for a ``motion`` one. The
    published initialisations run one after the other; here they share their batches, which a federation needs:
    every site is in the same phase, whatever its speed.
    """
    players.anonymizer.learn()
    with players.autocast(batch.clips_BCTHW.device):
        clips_BCTHW = players.f_A.transform(batch.clips_BCTHW)
    players.anonymizer.descend(reconstruction(clips_BCTHW, players.f_A.target(batch.clips_BCTHW)))

    return critics_move(players, batch, config)
