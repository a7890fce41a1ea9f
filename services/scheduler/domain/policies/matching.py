"""How much of a prompt a worker holds, as a share."""

import numpy as np

from services.scheduler.domain.grammar import Group
from services.scheduler.domain.roster import Floats


def matched_share(group: Group) -> Floats:
    """The resident share of the prompt's full blocks."""
    offer = group.offer
    if not offer.block_hashes:
        return np.zeros(len(group))
    return group.cached_tokens / (len(offer.block_hashes) * offer.block_size)
