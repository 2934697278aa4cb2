"""``fedspact audit``: attacks on what a federation's own wire and weights give away (docs/threats.md)."""

from simulations.audit.command import add_arguments as add_arguments
from simulations.audit.command import run as run
