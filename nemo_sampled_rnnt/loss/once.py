"""A gradient that was computed by formula has no graph, and so no gradient of its own."""

from __future__ import annotations

from functools import wraps

import torch


def once_differentiable(backward):
    """Refuse ``create_graph=True``.

    torch's decorator of this name raises only where the incoming gradient itself asks for one. That of a loss is a
    constant: a penalty on the gradient would train nothing, in silence.
    """

    @wraps(backward)
    def refusing(ctx, *gradients):
        if torch.is_grad_enabled():  # in a backward: create_graph
            raise RuntimeError(
                "this loss can be differentiated once, but backward was called with create_graph=True: leave that out, "
                "or use impl='reference' (without clamp) on small batches, which has second derivatives"
            )
        return backward(ctx, *gradients)

    return refusing
