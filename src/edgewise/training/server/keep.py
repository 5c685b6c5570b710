"""Keeps what was folded as it is."""

from __future__ import annotations

import numpy as np

from edgewise.codecs.bundle import Bundle
from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.algorithm import Closed, ServerRule


def keep(section: str = "gradient") -> ServerRule:
    """Puts a folded section into the state for the next exchange; the model stays.

    Args:
        section: Its name; as large as the model.

    Returns:
        The rule; state `section` float32[d].
    """

    def init(model: Vector) -> Bundle:
        return {section: np.zeros_like(model)}

    def apply(state: Bundle, folded: Bundle, closed: Closed) -> Bundle:
        return {section: folded[section]}

    return ServerRule(Spec("keep", {"section": section}), init, apply)
