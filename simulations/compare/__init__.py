"""``fedspact compare``: centralized, federated, local-only and the baselines, at equal steps and with equal seeds.

Every cell (arm, partition, seed) is trained and judged in a process of its own and kept; a comparison that was
stopped goes on with the cells that are missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SEEDS, PARTITIONS, ARMS = "0,1,2", "iid,site", "centralized,federated,local-only,baselines"
# Measured on one core at 32 px: a critics' move 0.18 s, an anonymizer's move 0.27 s; of a fresh network's 300 steps
# action 54 s, frame-convnet 17 s, video-tiny 46 s. With 3 sites this is 20 minutes of one core's work, on two cores
# 10, and as much again for slower ones.
QUICK = {"preset": "tiny", "judge.steps": 240}  # the demo's own training, judged a little shorter
QUICK_SEEDS, QUICK_PARTITIONS = "0", "site"
QUICK_ATTACKERS, QUICK_BASELINES = "frame-convnet,video-tiny,clip-trees", "raw,difference1bit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact compare``."""
    parser.add_argument("--data", type=Path, metavar="MANIFEST", help="CSV with a path column (fedspact index)")
    parser.add_argument("--views", type=Path, metavar="MANIFEST", help="videos or images for f_B's views, if others")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder, or that of a comparison to go on with"
    )
    parser.add_argument("--sites", type=int, metavar="N", help="number of simulated sites (default: 3)")
    parser.add_argument("--seeds", metavar="A,B", help=f"default: {SEEDS}")
    parser.add_argument(
        "--partitions",
        metavar="A,B",
        help="how rows are dealt out to sites: iid, a column such as site, source or identity (whole groups), or "
        f"COLUMN:ALPHA such as action:0.3 (each site's own mix, Dirichlet) (default: {PARTITIONS})",
    )
    parser.add_argument("--arms", metavar="A,B", default=ARMS, help="default: %(default)s")
    parser.add_argument("--baselines", metavar="A,B", help="obfuscations to judge beside them (default: all)")
    parser.add_argument("--task", metavar="COLUMN", default="identity", help="what leaks (default: %(default)s)")
    parser.add_argument("--attackers", metavar="A,B", help="fresh attackers (default: the preset's)")
    parser.add_argument(
        "--trained",
        type=Path,
        metavar="DIR",
        help="do not train: judge the networks of this comparison anew (with other judge.* settings, attackers, task)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML overrides, such as flower.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments", help="override one setting"
    )
    parser.add_argument("--preset", help="tiny, small or paper (default: tiny)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="decoded frames (default: OUT/cache)")
    parser.add_argument("--workers", type=int, metavar="N", help="cells at a time (default: one a core; one on a GPU)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, one partition, two baselines, a small budget: minutes; without --data on videos it makes",
    )
    parser.add_argument("--json", action="store_true", help="print comparison.json instead of the table")


def run(args: argparse.Namespace) -> int:
    """Make the cells that are missing, put them together, show the table."""
    from simulations.compare.command import compare

    return compare(args)
