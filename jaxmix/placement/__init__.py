"""Finds the leaves of a params tree that hold each site's tensors.

`resolve` is the entry: it takes adapters' sites and updates, and returns the tree's leaves and the
updates fitted to them. `Rule` and `Layout` describe where tensors are, a `Place` is where one
tensor is in one tree, and a `Site` is a module with its updates, its places and their forms.
"""

from jaxmix.placement.resolving import Resolved, resolve
from jaxmix.placement.sites import Site
from jaxmix.placement.tree import Tree

__all__ = ["Resolved", "Site", "Tree", "resolve"]
