"""From rows to what the judge holds in memory: a site does the same at its release gate, so it lives there."""

from client.held import BOTH as BOTH
from client.held import VIEWS as VIEWS
from client.held import Read as Read
from client.held import attackable as attackable
from client.held import attribute_labels as attribute_labels
from client.held import attributes_of as attributes_of
from client.held import build_set as build_set
from client.held import labels_of as labels_of
from client.held import lead_in_of as lead_in_of
from client.held import single_clips as single_clips
from client.held import value_of as value_of
